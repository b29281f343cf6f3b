"""Tools and the calls of tools: JSON text parsed once, OpenAI's old form made new, Arrow's nulls taken out."""

from __future__ import annotations

import json
from typing import Any, Final

from align.errors import AlignError, Place

_OBJECT: Final = 'give {"name": ..., "arguments": {...}}'


def without_nulls(value: Any) -> Any:
    """A value of Arrow without the fields that are null: rows of one table share the fields of their structs, and a row
    that was written without one comes back with a null. Nulls that stand in lists stay."""
    if isinstance(value, dict):
        return {name: without_nulls(field) for name, field in value.items() if field is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def schemas(value: Any, field: str, place: Place) -> list[Any]:
    """The tools of a row: a list, or the JSON text of one; so is each of them an object, or the JSON text of one.

    Args:
        field: `tools`, or `functions` for OpenAI's old form, which holds what `tools` has under "function".
    """
    found = _parsed(value, []) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise AlignError(
            f"'{field}' is not a list", "give a list of JSON schemas, or the JSON text of one", place=place
        )
    tools = [_parsed(tool, None) if isinstance(tool, str) else tool for tool in found]
    for number, tool in enumerate(tools, start=1):
        if not isinstance(tool, dict):
            what = f"tool {number} of '{field}' is not an object"
            raise AlignError(what, "give its JSON schema, or the JSON text of it", place=place)
    return [{"type": "function", "function": tool} for tool in tools] if field == "functions" else tools


def calls(value: dict[str, Any], where: str, place: Place) -> list[dict[str, Any]]:
    """The calls of a message: `tool_calls`, or OpenAI's old `function_call`; their arguments are objects."""
    found = value.get("tool_calls") or []
    if isinstance(found, str):
        found = _parsed(found, [])
    if not found and value.get("function_call"):
        found = [value["function_call"]]
    if not isinstance(found, list):
        raise AlignError(f"the tool_calls of {where} are not a list", f"{_OBJECT} for each", place=place)
    return [_call(call, f"call {number} of {where}", place) for number, call in enumerate(found, start=1)]


def call_in_words(content: Any) -> list[Any] | None:
    """The calls in the text of a turn that is a call (LLaMA-Factory, ms-swift); None where the text is no such JSON."""
    found = _parsed(content, None) if isinstance(content, str) else None
    listed = found if isinstance(found, list) else [found]
    return listed if listed and all(isinstance(call, dict) and "name" in call for call in listed) else None


def _call(call: Any, where: str, place: Place) -> dict[str, Any]:
    """As `{"function": {"name", "arguments"}}` and what else it was given with."""
    if isinstance(call, dict) and "function" not in call:
        call = {"type": "function", "function": call}
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise AlignError(f"{where} does not name a function", _OBJECT, place=place)
    if "arguments" not in function:
        return dict(call)
    given = function["arguments"]
    arguments = _parsed(given, {}) if isinstance(given, str) else given
    if not isinstance(arguments, dict):
        what = f"the arguments of {where}, to '{function['name']}', are not a JSON object"
        raise AlignError(what, 'give {"name": value, ...}, or the JSON text of it', place=place)
    return {**call, "function": {**function, "arguments": arguments}}


def _parsed(text: str, empty: Any) -> Any:
    """The value of a JSON text; `empty` for a blank one, None for one that is malformed."""
    try:
        return json.loads(text) if text.strip() else empty
    except (ValueError, RecursionError):
        return None
