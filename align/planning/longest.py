"""The longest batch that a stage can be given, of the rows that it has. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from align.data.formats import Example
from align.data.lengths import Lengths

LOOKED_AT = 512  # rows with most bytes, whose tokens are counted


def longest(
    examples: Sequence[Example], lengths: Lengths | None, count: int, limit: int | None = None
) -> tuple[list[Example], int]:
    """The `count` rows with most tokens, the longest first, and the tokens of that; 0 where none can be counted.

    Args:
        limit: tokens of a row that are kept.
    """
    by_bytes = sorted(examples, key=lambda one: len(one.canonical()), reverse=True)[: max(LOOKED_AT, count)]
    if lengths is None:
        return by_bytes[:count], 0
    counted = [found.total for found in lengths.counts(by_bytes)]
    order = sorted(range(len(by_bytes)), key=lambda at: counted[at], reverse=True)[:count]
    most = counted[order[0]] if order else 0
    return [by_bytes[at] for at in order], min(most, limit or most)


def mean_tokens(examples: Sequence[Example], lengths: Lengths | None, limit: int | None = None) -> float | None:
    """Tokens of a row as far as they are kept, over rows spread evenly over all; None where none can be counted. A pair
    has two answers of about the length of its longer one."""
    if lengths is None or not examples:
        return None
    count = min(LOOKED_AT, len(examples))
    spread = [examples[at * len(examples) // count] for at in range(count)]
    counted = [min(found.total, limit or found.total) for found in lengths.counts(spread)]
    counted = [size * (1 + (one.kind == "preference")) for one, size in zip(spread, counted, strict=True)]
    return sum(counted) / len(counted)
