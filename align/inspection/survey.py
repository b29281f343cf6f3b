"""What files of rows hold, read row by row in little memory: formats, lengths, turns, repeats, and every fault."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from align.data import notes
from align.data.checks import fits, understood
from align.data.formats import Example, Kind, normalise
from align.data.messages import Message
from align.data.pairs import Side
from align.data.rows import Found, RecordPlace
from align.data.sources import DataSource, scan
from align.errors import AlignError, Place
from align.inspection.counts import Lengths, Repeats

FAULTS_KEPT: Final = 10_000
"""Faults of one survey that are kept with their places; beyond that they are only counted."""

_NOISE: Final = dict.fromkeys(map(ord, " \t\n\r;:!?'\"`()[]{}-\u2013\u2014\u201c\u201d\u2018\u2019"))
_ANSWERS: Final = ("completion", "chosen", "rejected", "text")


class Seen(NamedTuple):
    """A row, and the example that it is or what is wrong with it."""

    row: Found
    found: Example | AlignError


@dataclass
class Places:
    """Where each row stands, eight bytes a row."""

    numbers: array[int] = field(default_factory=lambda: array("Q"))
    files: list[tuple[int, str, bool]] = field(default_factory=list)  # the first row of each, its label, has it lines

    def add(self, place: Place) -> None:
        lines = not isinstance(place, RecordPlace)
        if not self.files or self.files[-1][1:] != (place.file, lines):
            self.files.append((len(self.numbers), place.file, lines))
        self.numbers.append((place.row if isinstance(place, RecordPlace) else place.line) or 0)

    def __getitem__(self, number: int) -> Place:
        _, file, lines = next(each for each in reversed(self.files) if each[0] <= number)
        found = self.numbers[number]
        return Place(file, found) if lines else RecordPlace(file, row=found)


@dataclass
class Survey:
    """What was found of the rows of some sources.

    Attributes:
        name: the sources, as they were given.
        formats, kinds, roles: how many rows have each.
        turns: conversations by how many answers they have.
        fields: what rows hold besides: tools, a system prompt, a margin, a label.
        lengths: of the prompt and of each answer, in characters.
        asked, said: of each row what it asks, and all of it.
        faults: the first of them; `bad` counts all.
    """

    name: str
    rows: int = 0
    bad: int = 0
    faults: list[AlignError] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    places: Places = field(default_factory=Places)
    said: Repeats = field(default_factory=Repeats)
    bare: Repeats = field(default_factory=Repeats)  # the same without case, spaces and punctuation
    asked: Repeats = field(default_factory=Repeats)
    chosen: Repeats = field(default_factory=Repeats)
    longer: int = 0
    shorter: int = 0
    texts: int = 0  # prompts that are plain text, and those that are conversations
    talks: int = 0

    def add(self, seen: Seen) -> None:
        """Count a row."""
        if isinstance(seen.found, AlignError):
            self.bad += 1
            if len(self.faults) < FAULTS_KEPT:
                self.faults.append(seen.found.with_traceback(None))  # whose frames hold the row
                seen.found.__context__ = None
            return
        example, value, kind = seen.found, seen.found.value, seen.found.kind
        self.rows += 1
        self.formats[example.format] += 1
        self.kinds[kind] += 1
        if example.unused:
            self.unused.update(example.unused)
        self.places.add(example.place)
        canonical = example.canonical()
        self.said.add(canonical)
        self.bare.add(_bare(canonical))
        self.asked.add(example.asked())
        prompt, answers = parts(example)
        if kind == "prompt":
            self.texts += isinstance(prompt, str)
            self.talks += not isinstance(prompt, str)
        if prompt is not None:
            self._length("prompt", notes.length(prompt), example.place)
        for name, answer in answers.items():
            self._length(name, notes.length(answer), example.place)
        if kind == "preference":
            self.chosen.add(notes.said(value["chosen"]))
            sizes = notes.length(value["chosen"]), notes.length(value["rejected"])
            self.longer += sizes[0] > sizes[1]
            self.shorter += sizes[0] < sizes[1]
        if kind == "chat":
            self.turns[len(answers["answers"])] += 1
        for name in _besides(value):
            self.fields[name] += 1

    def _length(self, name: str, length: int, place: Place) -> None:
        if name not in self.lengths:
            self.lengths[name] = Lengths("characters")
        self.lengths[name].add(length, place)

    @property
    def pairs(self) -> notes.Pairs | None:
        """What is counted of preference pairs; None where a row is none."""
        if not self.rows or self.kinds["preference"] < self.rows:
            return None
        chosen, rejected = (self.lengths[name].values for name in ("chosen", "rejected"))
        means = [sum(values) / len(values) for values in (chosen, rejected)]
        return notes.Pairs(
            self.rows, self.asked.different(), self.chosen.different(), self.longer, self.shorter, means[0], means[1]
        )


def read(
    sources: Sequence[DataSource], *, root: Path, accepts: frozenset[Kind] | None = None, whose: str = ""
) -> Iterator[Seen]:
    """Every row of some sources, one after the other.

    Args:
        root: the folder in which a relative path is looked for after the current one.
        accepts: the kinds of rows that a stage trains on; None takes every known kind.
        whose: that stage, in messages: "stage 'dpo'".
    """
    for source in sources:
        for row in scan(source, root=root):
            try:
                if isinstance(row, AlignError):
                    raise row
                if accepts is None:
                    yield Seen(row, understood(row, source.format))
                else:
                    yield Seen(row, fits(normalise(row, source.format), row, accepts, whose))
            except AlignError as error:
                yield Seen(row, error)


def _bare(canonical: str) -> str:
    """Without case, spaces and punctuation; a point or a comma inside a number stays."""
    text = canonical.casefold().replace("\\n", " ").replace('\\"', "")
    for mark in ('."', ',"', ". ", ", "):
        text = text.replace(mark, mark[1])
    return text.translate(_NOISE)


def parts(example: Example) -> tuple[Side | None, dict[str, Side]]:
    """What a row asks, and its answers by name; of a conversation all that is not the assistant's, and all that is."""
    value = example.value
    if example.kind == "chat":
        said: dict[bool, list[Message]] = {True: [], False: []}
        for turn in value["messages"]:
            said[turn["role"] == "assistant"].append(turn)
        return said[False], {"answers": said[True]}
    return value.get("prompt"), {name: value[name] for name in _ANSWERS if name in value}


def _besides(value: dict[str, Any]) -> Iterator[str]:
    """What a row holds besides prompt and answer."""
    yield from (name for name in ("tools", "margin") if name in value)
    if "label" in value:
        yield "desirable" if value["label"] else "undesirable"
    asked = value.get("messages", value.get("prompt"))
    if isinstance(asked, list) and asked and asked[0]["role"] == "system":
        yield "system prompt"


def warnings(found: Survey, *, whole: bool = True) -> list[str]:
    """What is worth a look, although each row by itself is good.

    Args:
        whole: no stage is named that leaves rows out.
    """
    told = []
    if found.kinds.keys() - {"preference", "unpaired"} and "preference" in found.kinds:
        told.append("some rows are preference pairs and others are not: no stage trains on both")
    repeats = found.said.repeated()
    if repeats:
        (earlier, later) = found.said.pairs(1)[0]
        where = f"the first: {found.places[later]} repeats {found.places[earlier]}"
        told.append(f"{repeats:,} of {found.rows:,} rows are duplicates ({where})")
    near = found.bare.repeated() - repeats
    if near > 0:
        differs = "differs" if near == 1 else "differ"
        told.append(f"{near:,} more {differs} from another only in case, spaces or punctuation{_first_near(found)}")
    told += notes.unused_of(found.unused)
    pairs = found.pairs
    if pairs is not None:
        told += notes.preferences_of(pairs)
    labels = [found.fields[name] for name in ("desirable", "undesirable")]
    if found.kinds["unpaired"] == found.rows > 1 and 0 in labels and whole:
        only = "desirable" if labels[0] else "undesirable"
        told.append(f"every answer is labelled {only}: KTO needs answers of both labels")
    return told


def _first_near(found: Survey) -> str:
    """The first row that is near another and not the same."""
    if found.rows > 200_000:  # all pairs of so many are not worth their memory
        return ""
    same = set(found.said.pairs(len(found.said.hashes)))
    for pair in found.bare.pairs(len(same) + 1):
        if pair not in same:
            earlier, later = pair
            return f" (the first: {found.places[later]} is as {found.places[earlier]})"
    return ""


def leaked(trained: Survey, held: Survey) -> list[Place]:
    """Where the rows of `held` stand whose prompt is also one of `trained`."""
    return [held.places[number] for number in held.asked.shared(trained.asked)]
