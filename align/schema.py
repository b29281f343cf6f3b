"""The JSON Schema of a recipe, stages and parameterizations included, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align import arguments, parameterization, shelf, stage
from align.recipe import Recipe

Json = dict[str, Any]


def recipe_schema() -> Json:
    """One schema with every shipped stage's keys and every parameterization's."""
    schema = Recipe.model_json_schema()
    definitions: Json = schema.setdefault("$defs", {})
    methods = []
    for name in parameterization.names():
        found = parameterization.load(name).Keys.model_json_schema()
        definitions |= found.pop("$defs", {})
        found["properties"]["method"] = {"const": name, "description": parameterization.load(name).DESCRIPTION}
        definitions[f"parameterization_{name}"] = found
        methods.append({"$ref": f"#/$defs/parameterization_{name}"})
    merged: Json = {}
    trainer: Json = {}
    for name in shelf.names("stages"):
        declared = stage.load(name, Path()).stage
        found = declared.keys.model_json_schema()
        definitions |= found.pop("$defs", {})
        merged |= found["properties"]
        for argument in arguments.known(declared.arguments).values() if declared.arguments else ():
            if argument.name not in arguments.OWNED and argument.name not in declared.keys.model_fields:
                trainer[argument.name] = {"description": argument.help or argument.annotation}
    merged["training"] = {"type": "object", "properties": trainer, "additionalProperties": False}
    merged["parameterization"] = {"anyOf": [*methods, {"type": "null"}]}
    definitions["stage"] = {"type": "object", "properties": merged}
    schema["properties"]["parameterization"] = {"anyOf": methods}
    schema["properties"]["stages"]["additionalProperties"] = {"$ref": "#/$defs/stage"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "align recipe"} | schema
