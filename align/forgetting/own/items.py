"""The items of a user's probe, read from its files, each with its place. No torch."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from align.data import messages as turns
from align.data.faults import raise_all
from align.data.formats import Example, normalise, prompt_of
from align.data.pairs import text as text_of
from align.data.rows import Row
from align.data.sources import DataSource, scan
from align.errors import AlignError, Place, did_you_mean
from align.forgetting.measurements import Split
from align.forgetting.own.keys import ProbeFile

SPLITS: tuple[Split, ...] = get_args(Split)
MAX_FAULTS = 20
PROMPTS = ("prompt", "question")  # what is asked, in a row with choices
Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class OwnItem:
    """One item.

    Attributes:
        prompt: a text, or a conversation that ends with what is asked; of running text the text.
        answer: the right answer, or a regular expression for it; empty where a scorer needs none.
        columns: every field of the row, for a scorer.
    """

    id: str
    prompt: Prompt
    answer: str
    choices: tuple[str, ...]
    place: Place = field(compare=False)
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def is_conversation(self) -> bool:
        """Whether the prompt is messages rather than a text."""
        return not isinstance(self.prompt, str)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation; a text is one turn."""
        return [turns.user(self.prompt)] if isinstance(self.prompt, str) else self.prompt

    @property
    def question(self) -> str:
        """What is asked last."""
        asked: str = self.messages[-1]["content"]
        return asked


Halves = dict[Split, list[OwnItem]]


def read(name: str, keys: ProbeFile, root: Path) -> Halves:
    """The items of a probe in its two halves.

    Args:
        root: the recipe's folder.

    Raises:
        AlignError, Faults: every row that is no item, and items that occur twice, with file and line.
    """
    faults: list[AlignError] = []
    found: dict[str, list[OwnItem]] = {}
    for half, file in keys.files.items():
        found[half] = []
        for one in _rows(name, keys, file, root):
            if isinstance(one, OwnItem):
                found[half].append(replace(one, id="-".join(filter(None, (name, half, str(len(found[half])))))))
            else:
                faults.append(one)
    faults += _twice(item for items in found.values() for item in items)
    raise_all(faults, MAX_FAULTS, "errors in the data")
    halves = _split(found[""], keys.seed) if "" in found else {split: found[split] for split in SPLITS}
    _check_halves(name, halves)
    return halves


def _rows(name: str, keys: ProbeFile, file: str, root: Path) -> Iterator[OwnItem | AlignError]:
    for row in scan(DataSource(source=file), root=root):
        try:
            found = row if isinstance(row, AlignError) else _item(name, keys, row)
            if found is not None:
                yield found
        except AlignError as error:
            yield error


def _item(name: str, keys: ProbeFile, row: Row) -> OwnItem | None:
    """The item that a row is; None for an answer that is labelled undesirable."""
    columns = {name: given for name, given in row.value.items() if given is not None}
    if keys.metric == "choice":
        return _choice(name, row, columns)
    if "messages" in columns and "answer" in columns:
        answer = text_of(columns, "answer", row.place)
        if keys.metric == "regex":
            _check_pattern(answer, row.place)
        return OwnItem("", _asked(columns, row), answer, (), row.place, columns)
    example = normalise(row)
    if example.kind == "unpaired":
        if not example.value["label"]:
            return None
        example = normalise(row, labelled=False)
    if keys.metric == "perplexity":
        if example.kind != "text":
            raise AlignError(f"the probe '{name}' measures running text, but the row is none", _TEXT, place=row.place)
        return OwnItem("", example.value["text"], "", (), row.place)
    answer = _answer(name, keys, example)
    asked: Prompt = prompt_of(example).value["prompt"]  # which refuses a row that asks nothing
    if keys.metric == "regex":
        _check_pattern(answer, row.place)
    return OwnItem("", asked, answer, (), row.place, columns)


_TEXT = 'give {"text": "..."}, or another metric'
_ANSWERED = 'give {"prompt": "...", "answer": "..."}, or messages that end with the answer'
_CHOICES = 'give {"prompt": "...", "choices": ["...", "..."], "answer": "..."}'


def _answer(name: str, keys: ProbeFile, example: Example) -> str:
    """The answer that a row expects. A function may do without one."""
    if example.kind == "prompt" and keys.greedy and keys.metric not in ("contains", "regex"):
        return ""
    value = example.value
    if example.kind == "chat":
        said: str = value["messages"][-1]["content"]
    elif example.kind == "prompt_completion":
        completion = value["completion"]
        said = completion if isinstance(completion, str) else completion[-1]["content"]
    else:
        kind = {"text": "running text", "prompt": "a prompt without an answer"}.get(example.kind, "no single answer")
        what = f"the probe '{name}' needs prompts with their answers, but the row is {kind}"
        raise AlignError(what, _ANSWERED, place=example.place)
    return said


def _asked(columns: dict[str, Any], row: Row) -> Prompt:
    """The prompt of a row whose answer stands in a field of its own."""
    field = next((name for name in ("messages", *PROMPTS) if name in columns), None)
    if field is None:
        raise AlignError("the row asks nothing: it has neither 'prompt' nor 'messages'", _CHOICES, place=row.place)
    if isinstance(columns[field], str):
        return text_of(columns, field, row.place)
    asked = turns.with_system(columns.get("system"), turns.conversation(columns[field], field, row.place), row.place)
    if asked[-1]["role"] != "user":
        what = f"the last message of '{field}' is from the {asked[-1]['role']}, and the row has an 'answer' besides"
        raise AlignError(what, "end the messages with the question", place=row.place)
    return asked


def _choice(name: str, row: Row, columns: dict[str, Any]) -> OwnItem:
    choices = columns.get("choices")
    if not (isinstance(choices, list) and len(choices) > 1 and all(isinstance(one, str) for one in choices)):
        what = f"the probe '{name}' needs 'choices', a list of two or more texts"
        what += "" if choices is None else f", but here it is {turns.kind_of(choices)}"
        if isinstance(choices, list):
            what = "'choices' is not a list of two or more texts"
        raise AlignError(what, _CHOICES, place=row.place)
    empty = next((one for one in choices if not one.strip()), None)
    twice = next((one for one in choices if choices.count(one) > 1), None)
    if empty is not None or twice is not None:
        what = "one of the choices is empty" if empty is not None else f"the choice {twice!r} stands there twice"
        raise AlignError(what, "correct the row", place=row.place)
    if "answer" not in columns:
        raise AlignError("the row does not say which of its choices is right", _CHOICES, place=row.place)
    if not isinstance(columns["answer"], str):
        what = f"'answer' is {turns.kind_of(columns['answer'])}, not one of the choices"
        raise AlignError(what, "write the right choice word for word", place=row.place)
    if columns["answer"] not in choices:
        what = f"the answer {columns['answer']!r} is not among the choices"
        raise AlignError(what, did_you_mean(columns["answer"], choices), place=row.place)
    return OwnItem("", _asked(columns, row), columns["answer"], tuple(choices), row.place, columns)


def _check_pattern(pattern: str, place: Place) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        what = f"the answer {pattern!r} is not a regular expression: {error}"
        raise AlignError(what, "correct it, or use `metric: contains` for plain text", place=place) from None


def _twice(items: Iterator[OwnItem]) -> Iterator[AlignError]:
    """A fault for each item that stood before: it would count twice."""
    first: dict[str, Place] = {}
    for item in items:
        known = first.setdefault(repr((item.prompt, item.answer, item.choices)), item.place)
        if known is not item.place:
            yield AlignError(f"the item is the same as {known}", "remove one of the two", place=item.place)


def _split(items: Sequence[OwnItem], seed: int | None) -> Halves:
    """One file in two halves: by content, so that a row keeps its half when others are added; or equal ones by seed."""
    if seed is None:
        return {split: [i for i in items if SPLITS[zlib.crc32(i.question.encode()) % 2] == split] for split in SPLITS}
    drawn = {item.id: sha256(f"{seed}\n{item.question}\n{item.answer}".encode()).digest() for item in items}
    order = sorted(items, key=lambda item: (drawn[item.id], item.id))
    first = {item.id for item in order[::2]}
    return {split: [i for i in items if (i.id in first) is (split == "gate")] for split in SPLITS}


def _check_halves(name: str, halves: Halves) -> None:
    """Raises AlignError where the gate or the report would have nothing to look at."""
    empty = next((split for split, items in halves.items() if not items), None)
    if empty is not None:
        rows = sum(map(len, halves.values()))
        what = f"the probe '{name}' has {rows} {'row' if rows == 1 else 'rows'}, none of them in the {empty}'s half"
        raise AlignError(what, "give it more rows: it takes about 200 in each half to detect a drop of 0.05")
