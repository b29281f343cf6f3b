"""Figures of many rows in little memory: lengths, and how often the same text comes."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

from align.errors import Place

BARS = 8
"""At most so many bars has a histogram."""


class Bar(NamedTuple):
    """Rows whose length is from `low` on and below `high`."""

    low: int
    high: int
    rows: int


@dataclass
class Lengths:
    """The lengths of one part of all rows, in `unit`s."""

    unit: str
    values: array[int] = field(default_factory=lambda: array("I"))
    longest: int = -1
    place: Place | None = None  # of the longest

    def add(self, length: int, place: Place) -> None:
        self.values.append(min(length, 2**32 - 1))
        if length > self.longest:
            self.longest, self.place = length, place

    def quantile(self, share: float) -> int:
        """The smallest length that at least `share` of the rows do not exceed."""
        ordered = sorted(self.values)
        return ordered[max(0, ceil(share * len(ordered)) - 1)]

    def histogram(self) -> list[Bar]:
        """Bars of doubling width, the first from 0 on, the last with the longest row."""
        top = max(self.longest, 1).bit_length()
        first = max(0, top - BARS + 1)
        bounds = [0, *(2**power for power in range(first, top + 1))]
        counts = [0] * (len(bounds) - 1)
        for value in self.values:
            counts[max(0, value.bit_length() - first)] += 1
        return [Bar(*each) for each in zip(bounds, bounds[1:], counts, strict=False)]

    def written(self) -> dict[str, object]:
        """As JSON."""
        found = {
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "longest": self.longest,
            "longest_at": str(self.place or ""),
        }
        return {"unit": self.unit, **found, "histogram": [list(bar) for bar in self.histogram()]}


@dataclass
class Repeats:
    """How often the same text comes among rows: 64 bits of each are kept.

    Two different texts are taken for one with a chance of n^2 / 2^65 among n.
    """

    hashes: array[int] = field(default_factory=lambda: array("q"))

    def add(self, text: str) -> None:
        self.hashes.append(hash(text))

    def different(self) -> int:
        """How many different texts there are."""
        import numpy

        return len(numpy.unique(numpy.frombuffer(self.hashes, dtype=numpy.int64)))

    def repeated(self) -> int:
        """How many rows repeat one before them."""
        return len(self.hashes) - self.different() if self.hashes else 0

    def pairs(self, most: int) -> list[tuple[int, int]]:
        """The numbers, from 0, of the first `most` rows that come again, each after that of the last before it that is
        the same."""
        import numpy

        values = numpy.frombuffer(self.hashes, dtype=numpy.int64)
        order = numpy.argsort(values, kind="stable")
        same = numpy.flatnonzero(values[order[1:]] == values[order[:-1]])
        first = same[numpy.argsort(order[same + 1])[:most]]
        return [(int(order[i]), int(order[i + 1])) for i in first]

    def shared(self, other: Repeats) -> list[int]:
        """The numbers, from 0, of the rows whose text is also one of `other`'s."""
        import numpy

        mine, theirs = (numpy.frombuffer(each.hashes, dtype=numpy.int64) for each in (self, other))
        return [int(i) for i in numpy.flatnonzero(numpy.isin(mine, theirs))]
