"""Rows as a model's tokenizer and chat template make tokens of them: how many, and how many of them are learnt."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from align.data import encode
from align.data.encode import Text
from align.data.formats import Example
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError
from align.inspection.counts import Lengths

BATCH: Final = 512
_SIDES: Final = ("chosen", "rejected")


@dataclass
class Tokens:
    """What was counted of the tokens of rows; of a pair, both sides.

    Attributes:
        max_length: tokens of a row that a stage keeps; None keeps all.
        total, learnt: of all rows, uncut.
        cut: rows that are longer than `max_length`; of `lost` of them nothing that is learnt is left.
        endless: answers that the model would not learn to end.
        faults: rows that the chat template refuses.
    """

    tokenizer: TextTokenizer
    max_length: int | None = None
    lengths: Lengths = field(default_factory=lambda: Lengths("tokens"))
    total: int = 0
    learnt: int = 0
    cut: int = 0
    lost: int = 0
    endless: int = 0
    faults: list[AlignError] = field(default_factory=list)
    _waiting: list[Example] = field(default_factory=list)

    def add(self, example: Example) -> None:
        """Count a row, now or with those after it."""
        self._waiting.append(example)
        if len(self._waiting) == BATCH:
            self.finish()

    def finish(self) -> None:
        """Count the rows that were not counted yet."""
        good: list[tuple[Example, list[Text]]] = []
        for example in self._waiting:
            try:
                good.append((example, texts(example, self.tokenizer)))
            except AlignError as error:
                self.faults.append(AlignError(error.what, error.remedy, place=example.place))
        self._waiting.clear()
        rows = iter(encode.rows([text for _, sides in good for text in sides], self.tokenizer))
        for example, sides in good:
            self._count(example, [next(rows) for _ in sides])

    def _count(self, example: Example, rows: list[encode.Row]) -> None:
        longest = max(len(row.ids) for row in rows)
        self.lengths.add(longest, example.place)
        self.total += sum(len(row.ids) for row in rows)
        self.learnt += sum(end - start for row in rows for start, end in row.learnt)
        if self.max_length is not None and longest > self.max_length:
            self.cut += 1
            self.lost += example.kind != "prompt" and min(row.first for row in rows) >= self.max_length
        if example.kind != "prompt":
            self.endless += any(not row.learnt or row.ids[row.last - 1] not in self._ends for row in rows)

    @cached_property
    def _ends(self) -> set[int]:
        """What an answer may end with."""
        eos = self.tokenizer.id(self.tokenizer.eos) if self.tokenizer.eos else None
        return {*self.tokenizer.ends, *([] if eos is None else [eos])}


def texts(example: Example, tokenizer: TextTokenizer) -> list[Text]:
    """The text of a row, or of both sides of a pair, as the model reads it.

    Raises:
        AlignError: the chat template refuses it, or there is none.
    """
    if example.kind == "preference":
        return [encode.side(example.value, name, tokenizer) for name in _SIDES]
    return [encode.answers(example.value, tokenizer)]


def warnings(found: Tokens) -> list[str]:
    """What is worth a look of the tokens."""
    told = []
    if found.endless:
        rows = "row does" if found.endless == 1 else "rows do"
        told.append(f"{found.endless:,} {rows} not end with a token that the model could learn to stop at")
    if found.lost:
        rows = "row" if found.lost == 1 else "rows"
        told.append(f"{found.lost:,} {rows} would have no trained token left within {found.max_length:,} tokens")
    return told
