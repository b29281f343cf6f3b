"""The JSON Schema of a recipe, stages and parameterizations included, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align import shipped
from align.parameterization import method as parameterization
from align.recipe import training_arguments
from align.recipe.keys import Recipe
from align.recipe.training_arguments import Argument
from align.stage import program

Json = dict[str, Any]
_TYPES = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "str": "string",
    "dict": "object",
    "list": "array",
    "None": "null",
}


def recipe_schema() -> Json:
    """One schema with every shipped stage's keys and every parameterization's."""
    schema = Recipe.model_json_schema()
    definitions: Json = schema.setdefault("$defs", {})
    methods = {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in _methods(definitions)]}
    entry = _stage_keys(definitions)
    own = entry["parameterization"]
    entry["parameterization"] = {"anyOf": [methods, {"type": "null"}], "description": own["description"]}
    alone = entry["launch"]
    entry["launch"] = {"anyOf": [{"$ref": "#/$defs/LaunchKeys"}, {"type": "null"}], "description": alone["description"]}
    shared = schema["properties"]["parameterization"]
    schema["properties"]["parameterization"] = methods | {"description": shared["description"]}
    schema["properties"]["stages"]["additionalProperties"] = {"$ref": "#/$defs/stage"}
    # A stage of the user's own (./my_stage.py) has keys that are not known here.
    definitions["stage"] = {
        "type": "object",
        "properties": entry,
        "required": ["data"],
        "if": {"required": ["stage"], "properties": {"stage": {"pattern": r"\.py$"}}},
        "else": {"properties": dict.fromkeys(entry, True), "additionalProperties": False},
    }
    for name in ("DataSource", "RewardSource", "Rewrite", "Notify"):
        # their models take a plain string for the key that it stands for, which pydantic's schema does not know
        mapping = definitions.pop(name)
        definitions[name] = {"anyOf": [{"type": "string"}, mapping]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "align recipe"}


def _methods(definitions: Json) -> list[str]:
    """Put each parameterization into the definitions; returns their names there."""
    names = []
    for name in (*parameterization.files(), parameterization.OTHERS):
        others = parameterization.others() if name == parameterization.OTHERS else []
        method = parameterization.load(others[0] if others else name)
        found = method.Keys.model_json_schema()
        definitions |= found.pop("$defs", {})
        called = {"enum": others} if others else {"const": name}
        found["properties"]["method"] = called | {"description": method.DESCRIPTION}
        found["required"] = ["method", *found.get("required", [])]
        definitions[f"parameterization_{name}"] = found
        names.append(f"parameterization_{name}")
    return names


def _stage_keys(definitions: Json) -> Json:
    """The keys of all shipped stages; a training argument is one that any of them takes."""
    merged: Json = {}
    trainer: Json = {}
    for name in shipped.names("stages"):
        declared = program.load(name, Path()).stage
        found = declared.keys.model_json_schema()
        definitions |= found.pop("$defs", {})
        merged |= found["properties"]
        config = declared.arguments
        for argument in training_arguments.open_to_users(config, declared.reserved).values() if config else ():
            if argument.name not in declared.keys.model_fields:
                trainer[argument.name] = _argument(argument)
    merged["training"] |= {"properties": trainer, "additionalProperties": False}
    return merged


def _argument(argument: Argument) -> Json:
    described: Json = {"description": argument.help or argument.annotation}
    if choices := training_arguments.choices(argument):
        null: list[None] = [None] if "None" in argument.kinds else []
        return described | {"enum": [*choices, *null]}
    return described | ({"type": sorted(_TYPES[kind] for kind in argument.kinds)} if argument.kinds else {})
