"""The JSON Schema of a recipe: it is valid, says what each key is for, and accepts what `align check` accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align import shipped
from align.recipe.document import parse
from align.recipe.json_schema import recipe_schema
from align.recipe.load import locate
from align.recipe.verdicts import ENGINE
from error_cases import RECIPE

KEYWORDS = {
    *("$schema", "$defs", "$ref", "title", "description", "default", "type", "properties", "required", "items"),
    *("additionalProperties", "anyOf", "oneOf", "enum", "const", "if", "else", "pattern"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "minProperties", "minItems"),
}
KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def accepts(schema: Any, value: Any, root: dict[str, Any]) -> bool:
    """A small validator of the part of JSON Schema (draft 2020-12) that we use."""
    if isinstance(schema, bool):
        return schema
    assert set(schema) <= KEYWORDS, set(schema) - KEYWORDS
    if "$ref" in schema and not accepts(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root):
        return False
    kinds = schema.get("type", list(KINDS))
    allowed = tuple(t for kind in ([kinds] if isinstance(kinds, str) else kinds) for t in KINDS[kind])
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        return False
    if ("const" in schema and value != schema["const"]) or value not in schema.get("enum", [value]):
        return False
    for word, fits in (("anyOf", any), ("oneOf", lambda found: sum(found) == 1)):
        if word in schema and not fits([accepts(branch, value, root) for branch in schema[word]]):
            return False
    if "if" in schema and not accepts(schema["if"], value, root) and not accepts(schema.get("else", True), value, root):
        return False
    if isinstance(value, dict):
        return accepts_keys(schema, value, root)
    if isinstance(value, list):
        return all(accepts(schema.get("items", True), item, root) for item in value)
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and (schema.get("pattern") != r"\.py$" or value.endswith(".py"))
    if isinstance(value, bool) or value is None:
        return True
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    above, below = schema.get("exclusiveMinimum", value - 1), schema.get("exclusiveMaximum", value + 1)
    return bool(low <= value <= high and above < value < below)


def accepts_keys(schema: Any, value: dict[str, Any], root: dict[str, Any]) -> bool:
    if any(name not in value for name in schema.get("required", ())) or len(value) < schema.get("minProperties", 0):
        return False
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(accepts(known.get(name, others), item, root) for name, item in value.items())


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(recipe_schema()))
    return found


@pytest.mark.parametrize("name", shipped.names("recipes"))
def test_the_schema_accepts_every_shipped_recipe(name: str, schema: dict[str, Any]) -> None:
    assert accepts(schema, parse(locate(name).read_text(encoding="utf-8"), name).data, schema)


@pytest.mark.parametrize(
    "change",
    [
        {"sede": 1},
        {"seed": "seven"},
        {"seed": -1},
        {"model": "lab"},
        {"model": {"base": "lab", "dtyp": "auto"}},
        {"stages": {}},
        {"stages": {"sft": {}}},
        {"stages": {"sft": {"data": 5}}},
        {"stages": {"sft": {"data": "x", "dta": 1}}},
        {"stages": {"sft": {"data": "x", "training": {"learning_rat": 1}}}},
        {"stages": {"sft": {"data": "x", "training": {"seed": 1}}}},
        {"stages": {"sft": {"data": "x", "training": {"lr_scheduler_type": "cosin"}}}},
        {"parameterization": {"lora": {"r": 8}}},
        {"parameterization": {"method": "lora", "lora": {"r": 512}}},
        {"replay": {"data": "x", "ratio": 1.0}},
        {"trackers": ["wandbb"]},
        {"forgetting": {"max_drop": 10}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_recipe_refuses(change: dict[str, Any], schema: dict[str, Any]) -> None:
    good = parse(RECIPE, "r.yaml").data
    assert accepts(schema, good, schema)
    assert not accepts(schema, good | change, schema)


def test_the_schema_leaves_the_keys_of_a_users_stage_to_it(schema: dict[str, Any]) -> None:
    own = {"stage": "./mine.py", "data": "x", "margin": 1}
    assert accepts(schema, parse(RECIPE, "r.yaml").data | {"stages": {"mine": own}}, schema)


def described(schema: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """Every key of the schema, and whether it is described."""
    if isinstance(schema, dict):
        for name, part in schema.get("properties", {}).items():
            if isinstance(part, dict):
                yield f"{path}/{name}", bool(part.get("description"))
        for name, part in schema.items():
            if name not in ("if", "else"):  # these only speak of keys again
                yield from described(part, f"{path}/{name}")
    elif isinstance(schema, list):
        for part in schema:
            yield from described(part, path)


def test_every_key_is_described(schema: dict[str, Any]) -> None:
    found = dict(described(schema))
    assert len(found) > 150
    assert [name for name, is_described in found.items() if not is_described] == []


def test_the_schema_offers_no_argument_of_the_engines(schema: dict[str, Any]) -> None:
    offered = schema["$defs"]["stage"]["properties"]["training"]["properties"]
    assert {"learning_rate", "max_steps", "packing"} <= set(offered)
    assert not set(offered) & set(ENGINE)


def test_the_schema_beside_the_recipes_is_this_one() -> None:
    """Each shipped recipe's first line points an editor to it: `align schema > recipes/recipe.schema.json`."""
    file = Path(__file__).parents[1] / "recipes" / "recipe.schema.json"
    assert json.loads(file.read_text(encoding="utf-8")) == recipe_schema()
    for recipe in file.parent.rglob("*.yaml"):
        first = recipe.read_text(encoding="utf-8").splitlines()[0]
        named = first.removeprefix("# yaml-language-server: $schema=")
        assert (recipe.parent / named).resolve() == file, recipe
