"""What a row means: every common format of post-training data, turned into one of six canonical kinds.

chat               {"messages": [{"role", "content"}, ...]}
prompt_completion  {"prompt": text or messages, "completion": text or messages}
text               {"text": text}
preference         {"prompt": text or messages, "chosen": the same, "rejected": the same}, "margin": number where given
unpaired           {"prompt": text or messages, "completion": the same, "label": whether the answer is desirable}
prompt             {"prompt": text or messages}: the stage samples the answer itself; "columns": {name: field}, what
                   else the row has, where a reward function may ask for it

`tools` stays beside messages where the row has it. Within one row texts and messages are never mixed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

from align.data import hints, marks, media, pairs, tools
from align.data import messages as turns
from align.data.fields import CONVERSATIONS, INSTRUCTIONS, LABELS, PAIRS, PROMPTS
from align.data.messages import Message
from align.data.rows import Row
from align.errors import AlignError, Place

Kind = Literal["chat", "prompt_completion", "text", "preference", "unpaired", "prompt"]

_GIVE: Final = (
    "give messages, prompt + completion, instruction + output, conversations, text, or prompt + chosen + rejected"
)
_SHOWN: Final = 8

GIVEN: Final = ("prompts", "completions", "completion_ids")
"""What a reward function is given besides the columns of the rows."""

_ASKED: Final = {"prompt", "messages", "instruction", "input", "system", "history", "tools", *CONVERSATIONS}
_NO_COLUMNS: Final = frozenset({*_ASKED, *GIVEN, "completion"})  # the last TRL keeps back too

_LABELS: Final = frozenset(LABELS)
_NO_MESSAGES: Final = frozenset({"tools", "functions", "history", "system"})
"""Fields that hold lists of something else."""


@dataclass(frozen=True)
class Example:
    """A row in its canonical form, and where it came from.

    Attributes:
        unused: what its row holds besides, as `'score'` or `'score' in messages`.
        format: the name of the format that its row has.
    """

    kind: Kind
    value: dict[str, Any]
    place: Place
    unused: tuple[str, ...] = field(default=(), compare=False)
    format: str = field(default="", compare=False)

    def canonical(self) -> str:
        """The same text for the same content, whatever file it came from."""
        return _canonical([self.kind, self.value])

    def asked(self) -> str:
        """The same text for the same prompt, whatever the answer: for a chat what stands before its last answer, for a
        text the text."""
        if self.kind == "chat":
            before = _before_answer(self.value["messages"])
            return _canonical(marks.without(before)) if before else self.canonical()
        return _canonical(self.value["prompt"]) if "prompt" in self.value else self.canonical()


LEARNT: Final[frozenset[Kind]] = frozenset({"chat", "prompt_completion", "text"})
"""What can be replayed, as it is learnt by SFT."""

_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str).encode


def normalise(row: Row, format: str = "auto", *, labelled: bool = True) -> Example:
    """The example that `row` is; raises AlignError with the row's place.

    Args:
        format: `auto` sees the format from the fields; otherwise the name of one of `FORMATS`.
        labelled: with `auto`, an answer with a label is `unpaired`; otherwise it is read as if it had none.
    """
    # Parquet fills the fields that a row does not have with nulls.
    value = {name: field for name, field in row.value.items() if field is not None}
    if row.filled:
        value = tools.without_nulls(value)
    if format != "auto":
        found = FORMATS[format]
        if not found.fits(value):
            raise _unknown(row, f"not the format '{format}'", f"give {found.needs}, or remove `format`")
        return _example(format, value, row)
    for name, found in FORMATS.items():
        if found.fits(value) and (labelled or name != "unpaired"):
            return _example(name, value, row)
    raise _unknown(row, "no known format", _GIVE + hints.columns(row.value))


def _example(name: str, value: dict[str, Any], row: Row) -> Example:
    format = FORMATS[name]
    media.refuse(row.value, row.place)
    fields = _Fields(value)
    made = format.make(fields, row.place)
    if (value.get("tools") or value.get("functions")) and format.kind != "text":
        listed = "tools" if value.get("tools") else "functions"
        if not isinstance(made.get("prompt"), str) and (found := tools.schemas(fields[listed], listed, row.place)):
            made["tools"] = found
    return Example(format.kind, made, row.place, tuple(_unused(fields, made)), name)


class _Fields(dict[str, Any]):
    """A row's fields, which remembers those that were read."""

    def __init__(self, value: dict[str, Any]) -> None:
        super().__init__(value)
        self.read = set[str]()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def _unused(fields: _Fields, made: dict[str, Any]) -> Iterator[str]:
    """What a row holds, in fields of its own and in its messages, that nothing read or that had no place."""
    said = made.get("messages", made.get("prompt"))
    for name, given in fields.items():
        if name not in fields.read:
            if given not in ("", [], {}):
                yield f"'{name}'"
        elif name == "system" and isinstance(given, str):
            if isinstance(said, list) and given.strip() and said[0]["content"] != given:
                yield "'system'"  # the conversation begins with one of its own
        elif isinstance(given, list | dict) and name not in _NO_MESSAGES:
            yield from dict.fromkeys(f"'{key}' in messages" for key in turns.unused(given))


def _unknown(row: Row, is_what: str, remedy: str) -> AlignError:
    if not row.value:
        return AlignError("the row has no fields", remedy, place=row.place)
    names = [f"'{name}' (null)" if given is None else f"'{name}'" for name, given in row.value.items()]
    listed = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        listed += f" and {len(names) - _SHOWN} more"
    noun = "field" if len(names) == 1 else "fields"
    return AlignError(f"the row has the {noun} {listed}, which is {is_what}", remedy, place=row.place)


def _before_answer(messages: list[Message]) -> list[Message]:
    """A conversation without the turns of the assistant at its end."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]


# The formats -----------------------------------------------------------------------------------------------------


def _from_messages(value: dict[str, Any], place: Place) -> dict[str, Any]:
    return _chat(value, "messages", place)


def _from_sharegpt(value: dict[str, Any], place: Place) -> dict[str, Any]:
    return _chat(value, next(name for name in CONVERSATIONS if name in value), place)


def _chat(value: dict[str, Any], field: str, place: Place) -> dict[str, Any]:
    messages = turns.with_system(value.get("system"), turns.conversation(value[field], field, place), place)
    if messages[-1]["role"] != "assistant":
        what = f"the last message of '{field}' is from the {messages[-1]['role']}, so there is no answer to train on"
        raise AlignError(what, "end with an assistant message, or remove the row", place=place)
    marks.require_learnt(messages, field, place)
    return {"messages": messages}


def _from_alpaca(value: dict[str, Any], place: Place) -> dict[str, Any]:
    answer = pairs.text(value, next(name for name, _ in INSTRUCTIONS if name in value), place)
    asked: pairs.Side = [turns.user(pairs.instruction(value, place))]
    prompt, completion = pairs.same_form([asked, answer], value, place)
    return {"messages": [*prompt, *completion]}


def _from_prompt_completion(value: dict[str, Any], place: Place) -> dict[str, Any]:
    names = pairs.named(value, PROMPTS)
    assert names is not None
    prompt, completion = pairs.same_form([pairs.side(value, name, place) for name in names], value, place)
    pairs.check_prompt(prompt, names[0], place)
    pairs.check_answer(completion, names[1], place)
    return {"prompt": prompt, "completion": completion}


def _from_labelled(value: dict[str, Any], place: Place) -> dict[str, Any]:
    """An answer alone, with whether it is desirable: in a conversation the assistant's last."""
    found = next(form for name in _ANSWERED if (form := FORMATS[name]).fits(value))
    made = found.make(value, place) | {"label": _label(value)}
    if found.kind == "chat":
        messages = made.pop("messages")
        prompt = _before_answer(messages)
        if not any(turn["role"] == "user" for turn in prompt):
            raise _answers_nothing(place)
        completion = messages[len(prompt) :]
        if not any(turn.get("train", True) for turn in completion):
            what = "the answer that the label applies to is marked as not trained"
            raise AlignError(what, "remove the mark or the row", place=place)
        made |= {"prompt": marks.without(prompt), "completion": completion}
    return made


def _label(value: dict[str, Any]) -> bool | None:
    """Whether an answer is desirable; None where a row has no label that says so."""
    if _LABELS.isdisjoint(value):
        return None
    label = next(value[name] for name in LABELS if name in value)
    if isinstance(label, str):  # as a CSV has it
        return {"true": True, "false": False, "1": True, "0": False}.get(label.strip().lower())
    return bool(label) if isinstance(label, bool | int | float) and label in (0, 1) else None


def _from_prompt(value: dict[str, Any], place: Place) -> dict[str, Any]:
    (prompt,) = pairs.same_form([pairs.side(value, "prompt", place)], value, place)
    pairs.check_prompt(prompt, "prompt", place)
    return {"prompt": prompt}


def prompt_of(example: Example) -> Example:
    """What a row asks, without its answers; a text asks nothing and stays as it is."""
    value = example.value
    if example.kind == "chat":
        asked = {"prompt": marks.without(_before_answer(value["messages"]))}
        if not any(turn["role"] == "user" for turn in asked["prompt"]):
            raise _answers_nothing(example.place)
    elif example.kind == "text":
        return example
    else:
        asked = {"prompt": value["prompt"]}
    kept = {name: value[name] for name in ("tools", "columns") if name in value}
    return replace(example, kind="prompt", value=asked | kept)


def _answers_nothing(place: Place) -> AlignError:
    return AlignError("the row has an answer but no prompt", "remove it", place=place)


def with_columns(example: Example, row: Row) -> Example:
    """A prompt, and beside it every column of its row that is no part of it, as TRL hands them to reward functions."""
    columns = {name: given for name, given in row.value.items() if name not in _NO_COLUMNS and given is not None}
    unused = tuple(name for name in example.unused if name.strip("'") not in columns)
    return replace(example, value=example.value | ({"columns": columns} if columns else {}), unused=unused)


def _from_text(value: dict[str, Any], place: Place) -> dict[str, Any]:
    return {"text": pairs.text(value, "text" if "text" in value else "content", place)}


_Fits = Callable[[dict[str, Any]], bool]
_Make = Callable[[dict[str, Any], Place], dict[str, Any]]


class Format(NamedTuple):
    """How rows of one format are told, and what becomes of them.

    Attributes:
        fits: whether a row is of this format.
        kind: what it becomes.
        make: the canonical value of a row that fits.
        needs: the fields that it must have, for messages.
    """

    fits: _Fits
    kind: Kind
    make: _Make
    needs: str


def _has(*choices: tuple[str, ...]) -> _Fits:
    wanted, any_of = [frozenset(names) for names in choices], frozenset(names[0] for names in choices)
    return lambda value: not any_of.isdisjoint(value) and any(names <= value.keys() for names in wanted)


def _is_alpaca(value: dict[str, Any]) -> bool:
    return "instruction" in value and ("output" in value or ("response" in value and "prompt" not in value))


def _is_labelled(value: dict[str, Any]) -> bool:
    return _label(value) is not None and any(FORMATS[name].fits(value) for name in _ANSWERED)


_ANSWERED: Final = ("messages", "sharegpt", "alpaca", "prompt_completion")
"""The formats of single answers, which may have a label beside them."""

FORMATS: Final[dict[str, Format]] = {
    "preference": Format(_has(*PAIRS), "preference", pairs.preference, "prompt + chosen + rejected"),
    "unpaired": Format(
        _is_labelled,
        "unpaired",
        _from_labelled,
        "prompt + completion + label, or messages + label, with a label that is true or false",
    ),
    "messages": Format(_has(("messages",)), "chat", _from_messages, "messages"),
    "sharegpt": Format(_has(*((name,) for name in CONVERSATIONS)), "chat", _from_sharegpt, "conversations"),
    "alpaca": Format(_is_alpaca, "chat", _from_alpaca, "instruction + output"),
    "prompt_completion": Format(
        _has(*PROMPTS),
        "prompt_completion",
        _from_prompt_completion,
        "prompt + completion, prompt + response, or question + answer",
    ),
    "text": Format(_has(("text",), ("content",)), "text", _from_text, "text"),
    "prompt": Format(_has(("prompt",)), "prompt", _from_prompt, "prompt"),
}
"""By name; the first that fits is taken."""
