"""Messages: whatever spelling a turn of a conversation comes in, `{"role", "content"}` goes out."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

from align.errors import AlignError, Place

Message: TypeAlias = dict[str, Any]
"""`role` and `content`, both strings, and what a chat template may want besides (`_KEPT`)."""

ROLES: Final = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES: Final = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_KEPT: Final = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def with_system(system: Any, rest: list[Message]) -> list[Message]:
    """`rest` under the text `system`, unless that is empty or `rest` has a system message of its own."""
    if not isinstance(system, str) or not system.strip() or (rest and rest[0]["role"] == "system"):
        return rest
    return [{"role": "system", "content": system}, *rest]


def conversation(value: Any, field: str, place: Place) -> list[Message]:
    """The messages of one field; raises AlignError that names the message by its number, counted from 1."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        what = f"'{field}' is {kind_of(value)}, not a list of messages"
        raise AlignError(what, 'give [{"role": "user", "content": "..."}, ...]', place=place)
    if not value:
        raise AlignError(f"'{field}' has no messages", "add messages, or take the row out", place=place)
    return [_message(each, f"message {number} of '{field}'", place) for number, each in enumerate(value, start=1)]


def _message(value: Any, where: str, place: Place) -> Message:
    if not isinstance(value, dict):
        what = f"{where} is {kind_of(value)}, not an object"
        raise AlignError(what, 'give {"role": "user", "content": "..."}', place=place)
    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    kept = {name: value[name] for name in _KEPT if value.get(name)}
    if content is None and kept.get("tool_calls"):
        content = ""
    message = {"role": _role(role, where, place), "content": _content(content, where, place), **kept}
    if message["role"] in ("user", "assistant") and not message["content"].strip() and "tool_calls" not in kept:
        who = "the assistant's answer" if message["role"] == "assistant" else "the user's prompt"
        raise AlignError(f"{where}, {who}, is empty", "write it, or take the row out", place=place)
    return message


def _role(role: Any, where: str, place: Place) -> str:
    if role is None:
        raise AlignError(f"{where} has no role", f"give one of {', '.join(ROLES)}", place=place)
    named = str(role)
    known = _SHAREGPT_ROLES.get(named, named)
    if known not in ROLES:
        near = get_close_matches(named, (*ROLES, *_SHAREGPT_ROLES), n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(ROLES)}"
        raise AlignError(f"{where} has the unknown role '{named}'", remedy, place=place)
    return known


def _content(content: Any, where: str, place: Place) -> str:
    """A string as it is; a list of text parts joined. Parts that are no text are refused."""
    if isinstance(content, str):
        return content
    if content is None:
        raise AlignError(f"{where} has no content", "write it, or take the row out", place=place)
    if not isinstance(content, list):
        raise AlignError(f"the content of {where} is {kind_of(content)}, not a text", "put it in quotes", place=place)
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str) or (isinstance(part, dict) and part.get("type", "text") != "text"):
            kind = part.get("type", "unknown") if isinstance(part, dict) else kind_of(part)
            what = f"{where} has a part of type '{kind}'; only text can be trained on"
            raise AlignError(what, "keep the text parts only, or take the row out", place=place)
        texts.append(text)
    return "".join(texts)


def tools(value: Any, place: Place) -> list[Any]:
    """The tools of a row, given as a list or as the JSON text of one."""
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value) if value.strip() else []
        except ValueError:
            found = None
    if not isinstance(found, list):
        raise AlignError("'tools' is not a list", "give a list of JSON schemas, or the JSON text of one", place=place)
    return found


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
