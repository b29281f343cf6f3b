"""What a row means: every common format of post-training data, turned into one of five canonical kinds.

chat               {"messages": [{"role", "content"}, ...]}
prompt_completion  {"prompt": text or messages, "completion": text or messages}
text               {"text": text}
preference         {"prompt": text or messages, "chosen": the same, "rejected": the same}, "margin": number where given
prompt             {"prompt": text or messages}: the stage samples the answer itself; "columns": {name: field}, what
                   else the row has, where a reward function may ask for it

`tools` stays beside messages where the row has it. Within one row texts and messages are never mixed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from align.data import messages as turns
from align.data import pairs
from align.data.rows import FIELDS, Row
from align.errors import AlignError, Place

Kind = Literal["chat", "prompt_completion", "text", "preference", "prompt"]

_GIVE: Final = (
    "give messages, prompt + completion, instruction + output, conversations, text, or prompt + chosen + rejected"
)
_PROMPT_NAMES: Final = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
_SHOWN: Final = 8

GIVEN: Final = ("prompts", "completions", "completion_ids")
"""What a reward function is given besides the columns of the rows."""

_ASKED: Final = {"prompt", "messages", "conversations", "instruction", "input", "system", "history", "tools"}
_NO_COLUMNS: Final = frozenset({*_ASKED, *GIVEN, "completion"})  # the last TRL keeps back too


@dataclass(frozen=True)
class Example:
    """A row in its canonical form, and where it came from."""

    kind: Kind
    value: dict[str, Any]
    place: Place

    def canonical(self) -> str:
        """The same text for the same content, whatever file it came from."""
        return json.dumps(
            [self.kind, self.value], ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str
        )


def normalise(row: Row, format: str = "auto") -> Example:
    """The example that `row` is; raises AlignError with the row's place.

    Args:
        format: `auto` sees the format from the fields; otherwise the name of one of `FORMATS`.
    """
    # Parquet fills the fields that a row does not have with nulls.
    value = {name: field for name, field in row.value.items() if field is not None}
    if format != "auto":
        fits, kind, make, needs = FORMATS[format]
        if not fits(value):
            raise _unknown(row, f"not the format '{format}'", f"give {needs}, or leave format out")
        return _example(kind, make(value, row.place), value, row.place)
    for fits, kind, make, _ in FORMATS.values():
        if fits(value):
            return _example(kind, make(value, row.place), value, row.place)
    strange = next((name for name in value if name not in FIELDS), None)
    example = f"; or map columns: {{prompt: {strange}}}" if strange else ""
    raise _unknown(row, "no known format", _GIVE + example)


def _example(kind: Kind, made: dict[str, Any], value: dict[str, Any], place: Place) -> Example:
    if value.get("tools") and kind != "text" and not isinstance(made.get("prompt"), str):
        made["tools"] = turns.tools(value["tools"], place)
    return Example(kind, made, place)


def _unknown(row: Row, is_what: str, remedy: str) -> AlignError:
    if not row.value:
        return AlignError("the row has no fields", remedy, place=row.place)
    names = [f"'{name}' (null)" if field is None else f"'{name}'" for name, field in row.value.items()]
    listed = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        listed += f" and {len(names) - _SHOWN} more"
    noun = "field" if len(names) == 1 else "fields"
    return AlignError(f"the row has the {noun} {listed}, which is {is_what}", remedy, place=row.place)


# The formats -----------------------------------------------------------------------------------------------------


def _chat(value: dict[str, Any], field: str, place: Place) -> dict[str, Any]:
    messages = turns.with_system(value.get("system"), turns.conversation(value[field], field, place))
    if messages[-1]["role"] != "assistant":
        what = f"the last message of '{field}' is from the {messages[-1]['role']}, so there is no answer to learn"
        raise AlignError(what, "end with a message of the assistant, or take the row out", place=place)
    return {"messages": messages}


def _from_messages(value: dict[str, Any], place: Place) -> dict[str, Any]:
    return _chat(value, "messages", place)


def _from_sharegpt(value: dict[str, Any], place: Place) -> dict[str, Any]:
    return _chat(value, "conversations", place)


def _from_alpaca(value: dict[str, Any], place: Place) -> dict[str, Any]:
    answer = turns.assistant(pairs.text(value, "output", place))
    return {"messages": [*pairs.alpaca_prompt(value, place), answer]}


def _from_prompt_completion(value: dict[str, Any], place: Place) -> dict[str, Any]:
    prompt_name, completion_name = next(names for names in _PROMPT_NAMES if all(name in value for name in names))
    prompt, completion = pairs.same_form(
        [pairs.side(value, prompt_name, place), pairs.side(value, completion_name, place)], value.get("system")
    )
    pairs.check_prompt(prompt, prompt_name, place)
    pairs.check_answer(completion, completion_name, place)
    return {"prompt": prompt, "completion": completion}


def _from_prompt(value: dict[str, Any], place: Place) -> dict[str, Any]:
    (prompt,) = pairs.same_form([pairs.side(value, "prompt", place)], value.get("system"))
    pairs.check_prompt(prompt, "prompt", place)
    return {"prompt": prompt}


def prompt_of(example: Example) -> Example:
    """What a row asks, without its answers; a text asks nothing and stays as it is."""
    value = example.value
    if example.kind == "chat":
        turns_before = list(value["messages"])
        while turns_before and turns_before[-1]["role"] == "assistant":
            turns_before.pop()
        asked = {"prompt": turns_before}
        if not any(turn["role"] == "user" for turn in turns_before):
            what = "the row has an answer and nothing that it answers"
            raise AlignError(what, "take it out", place=example.place)
    elif example.kind == "text":
        return example
    else:
        asked = {"prompt": value["prompt"]}
    kept = {name: value[name] for name in ("tools", "columns") if name in value}
    return Example("prompt", asked | kept, example.place)


def with_columns(example: Example, row: Row) -> Example:
    """A prompt, and beside it every column of its row that is no part of it, as TRL hands them to reward functions."""
    columns = {name: field for name, field in row.value.items() if name not in _NO_COLUMNS and field is not None}
    return Example(example.kind, example.value | ({"columns": columns} if columns else {}), example.place)


def _from_text(value: dict[str, Any], place: Place) -> dict[str, Any]:
    return {"text": pairs.text(value, "text" if "text" in value else "content", place)}


_Fits = Callable[[dict[str, Any]], bool]
_Make = Callable[[dict[str, Any], Place], dict[str, Any]]


def _has(*choices: tuple[str, ...]) -> _Fits:
    return lambda value: any(all(name in value for name in names) for names in choices)


FORMATS: Final[dict[str, tuple[_Fits, Kind, _Make, str]]] = {
    "preference": (_has(("chosen", "rejected")), "preference", pairs.preference, "prompt + chosen + rejected"),
    "messages": (_has(("messages",)), "chat", _from_messages, "messages"),
    "sharegpt": (_has(("conversations",)), "chat", _from_sharegpt, "conversations"),
    "alpaca": (_has(("instruction", "output")), "chat", _from_alpaca, "instruction + output"),
    "prompt_completion": (
        _has(*_PROMPT_NAMES),
        "prompt_completion",
        _from_prompt_completion,
        "prompt + completion, prompt + response, or question + answer",
    ),
    "text": (_has(("text",), ("content",)), "text", _from_text, "text"),
    "prompt": (_has(("prompt",)), "prompt", _from_prompt, "prompt"),
}
"""Name -> whether a row fits, the kind it becomes, how, and the fields it needs. The first that fits is taken."""
