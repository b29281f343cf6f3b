"""Rows whose answer is shown to a teacher: what is asked, and the demonstration of an answer to it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from align.data.formats import Example
from align.errors import AlignError, FaultList

Record = dict[str, Any]
_FAULTS: Final = 20
_REMEDY: Final = "remove such rows, or use an `sft` stage for them"


def split(value: Record) -> tuple[str | list[Record], str]:
    """The prompt of a canonical row, and its last answer.

    Returns:
        the prompt, a text or messages that end with the user's, and the answer's text.

    Raises:
        AlignError: the answer is no text, does not come last, or follows something else than the user's words.
    """
    if value.get("tools"):
        raise AlignError("the row has tools, but answers are sampled without tools", _REMEDY)
    if isinstance(value.get("prompt"), str):
        return value["prompt"], value["completion"]
    turns: list[Record] = [turn for name in ("prompt", "completion", "messages") for turn in value.get(name, ())]
    before, last = turns[:-1], turns[-1]
    if last["role"] != "assistant" or not isinstance(last.get("content"), str) or not last["content"].strip():
        raise AlignError("the row does not end with an answer, which would be the demonstration", _REMEDY)
    if not before or before[-1]["role"] != "user" or not isinstance(before[-1].get("content"), str):
        raise AlignError("the row's last answer does not follow the user's words", _REMEDY)
    return [{name: text for name, text in turn.items() if name != "train"} for turn in before], last["content"]


def check(examples: Sequence[Example]) -> None:
    """Whether every row can be split, and whether all prompts are of one kind, as TRL tokenises them.

    Raises:
        Faults: with the place of each row that is wrong.
    """
    faults = FaultList()
    kinds: dict[bool, Example] = {}
    for example in examples:
        if len(faults.found) >= _FAULTS:
            break
        try:
            prompt, _ = split(example.value)
        except AlignError as error:
            faults.found.append(AlignError(error.what, error.remedy, place=example.place))
            continue
        kinds.setdefault(isinstance(prompt, str), example)
    if len(kinds) == 2 and not faults.found:
        what = "the row's prompt is a text, but others are conversations"
        faults.found.append(AlignError(what, "write all of them in one way", place=kinds[True].place))
    faults.raise_any()
