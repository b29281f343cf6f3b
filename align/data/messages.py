"""Messages: whatever spelling a turn of a conversation comes in, `{"role", "content"}` goes out."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

from align.data import marks, tools
from align.errors import AlignError, Place

Message: TypeAlias = dict[str, Any]
"""`role` and `content`, both strings; what a chat template may want besides (`_KEPT`, `tool_calls`); and, on a message
of the assistant that is not to be learnt, `"train": false`."""

ROLES: Final = ("system", "user", "assistant", "tool")
_SPELLINGS: Final = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
_CALLS: Final = ("function_call", "tool_call")
"""Roles of turns whose text is a call: LLaMA-Factory's and ms-swift's."""

_THOUGHTS: Final = ("reasoning_content", "reasoning", "thinking")
_KEPT: Final = ("name", "tool_call_id", *_THOUGHTS)
_PLAIN: Final = frozenset({"role", "from", "content", "value"})
_READ: Final = frozenset({*_PLAIN, *_KEPT, "tool_calls", "function_call", *marks.MARKS})


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def with_system(system: Any, rest: list[Message], place: Place) -> list[Message]:
    """`rest` under the text, or the text parts, `system`, unless that is empty or `rest` has a system message of its
    own."""
    text = _content(system, "'system'", place, of="") if system else ""
    if not text.strip() or (rest and rest[0]["role"] == "system"):
        return rest
    return [{"role": "system", "content": text}, *rest]


def conversation(value: Any, field: str, place: Place) -> list[Message]:
    """The messages of one field; raises AlignError that names the message by its number, counted from 1."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        what = f"'{field}' is {kind_of(value)}, not a list of messages"
        raise AlignError(what, 'give [{"role": "user", "content": "..."}, ...]', place=place)
    if not value:
        raise AlignError(f"'{field}' has no messages", "add messages, or remove the row", place=place)
    return [_message(each, f"message {number} of '{field}'", place) for number, each in enumerate(value, start=1)]


def unused(value: dict[str, Any] | list[Any]) -> Iterator[str]:
    """The names in messages that mean nothing here and hold something, each once for each message."""
    for each in [value] if isinstance(value, dict) else value:
        if isinstance(each, dict) and not each.keys() <= _READ:
            yield from (name for name, field in each.items() if name not in _READ and field not in (None, "", [], {}))


def _message(value: Any, where: str, place: Place) -> Message:
    if not isinstance(value, dict):
        what = f"{where} is {kind_of(value)}, not an object"
        raise AlignError(what, 'give {"role": "user", "content": "..."}', place=place)
    given = value.get("role", value.get("from"))
    role = _role(given, where, place)
    content = value.get("content", value.get("value"))
    if given in _CALLS and (found := tools.call_in_words(content)):
        value, content = {**value, "tool_calls": found}, ""
    more = _more(value, role, where, place) if not value.keys() <= _PLAIN else {}  # most have no more
    if content is None and "tool_calls" in more:
        content = ""
    message = {"role": role, "content": _content(content, where, place), **more}
    if role in ("user", "assistant") and not message["content"].strip() and "tool_calls" not in more:
        who = "the assistant's answer" if role == "assistant" else "the user's prompt"
        raise AlignError(f"{where}, {who}, is empty", "write it, or remove the row", place=place)
    return message


def _more(value: Message, role: str, where: str, place: Place) -> Message:
    """What a message has beside its role and content."""
    kept = {name: value[name] for name in _KEPT if value.get(name)}
    for name in _THOUGHTS:
        if not isinstance(kept.get(name, ""), str):
            what = f"the {name} of {where} is {kind_of(kept[name])}, not a string"
            raise AlignError(what, "put it in quotes, or remove it", place=place)
    if called := tools.calls(value, where, place):
        kept["tool_calls"] = called
    if not marks.learnt(value, role, where, place) and role == "assistant":
        kept["train"] = False
    return kept


def _role(role: Any, where: str, place: Place) -> str:
    if role is None:
        raise AlignError(f"{where} has no role", f"give one of {', '.join(ROLES)}", place=place)
    named = str(role)
    known = _SPELLINGS.get(named, named)
    if known not in ROLES:
        near = get_close_matches(named, (*ROLES, *_SPELLINGS), n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(ROLES)}"
        raise AlignError(f"{where} has the unknown role '{named}'", remedy, place=place)
    return known


def _content(content: Any, where: str, place: Place, of: str = "the content of ") -> str:
    """A string as it is; a list of text parts joined. Parts that are no text are refused."""
    if isinstance(content, str):
        return content
    if content is None:
        raise AlignError(f"{where} has no content", "write it, or remove the row", place=place)
    if not isinstance(content, list):
        raise AlignError(f"{of}{where} is {kind_of(content)}, not a string", "put it in quotes", place=place)
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str) or (isinstance(part, dict) and part.get("type", "text") != "text"):
            kind = part.get("type", "unknown") if isinstance(part, dict) else kind_of(part)
            what = f"{where} has a part of type '{kind}', but only text is supported"
            raise AlignError(what, "keep only the text parts, or remove the row", place=place)
        texts.append(text)
    return "".join(texts)


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
