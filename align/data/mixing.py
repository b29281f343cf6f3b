"""Which rows are held out, and which old rows are replayed among the new ones. Everything follows from the seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from hashlib import sha256
from math import floor
from typing import TypeVar

from align.data.formats import Example
from align.errors import AlignError

_Element = TypeVar("_Element")


def hold_out(examples: Sequence[Example], share: float | int, seed: int) -> tuple[list[Example], list[Example]]:
    """Split into (train, held), each in the order given; raises AlignError where one of them would be empty.

    A row's side follows from its content and the seed. So equal rows are on the same side, and with a float, rows that
    are added later move none of the old ones; the number held is then about share x rows. With an int at most that
    many rows are held, those that come first by the same measure: an added row takes at most one old row's place.

    Args:
        share: a float in [0, 1): the share of rows to hold out; an int: their number.
    """
    if not share:
        return list(examples), []
    keys = [_position(example, seed) for example in examples]
    if isinstance(share, int):
        held = _lowest(keys, share)
    elif 0 < share < 1:
        held = {key for key in keys if key < share}
    else:
        raise AlignError(
            f"the held-out share {share} is not between 0 and 1", "give 0.1 for a tenth, or a whole number"
        )
    train = [example for example, key in zip(examples, keys, strict=True) if key not in held]
    test = [example for example, key in zip(examples, keys, strict=True) if key in held]
    if not train:
        what = f"holding out {share} of {len(examples):,} rows leaves none to train on"
        raise AlignError(what, "hold out fewer")
    if not test:
        what = f"holding out {share} of {len(examples):,} rows takes none of them"
        raise AlignError(what, "hold out a larger share, or a whole number of rows")
    return train, test


def _position(example: Example, seed: int) -> Fraction:
    """A number in [0, 1) that depends on nothing but the content and the seed."""
    digest = sha256(f"{seed}\n{example.canonical()}".encode()).digest()
    return Fraction(int.from_bytes(digest[:8]), 2**64)


def _lowest(keys: Sequence[Fraction], limit: int) -> set[Fraction]:
    """The lowest keys that together stand for at most `limit` rows."""
    counts: dict[Fraction, int] = defaultdict(int)
    for key in keys:
        counts[key] += 1
    chosen, rows = set(), 0
    for key in sorted(counts):
        if rows + counts[key] <= limit:
            chosen.add(key)
            rows += counts[key]
    return chosen


def replay_rows(task_rows: int, ratio: float) -> int:
    """The number n of replay rows for which n / (task_rows + n) is nearest to `ratio`, which lies in [0, 1)."""
    if not 0 <= ratio < 1:
        what = f"the replay ratio {ratio} is not between 0 and 1"
        raise AlignError(what, "give the share of replay in the whole: 0.2 for one row in five, 0 for none")
    exact = Fraction(str(ratio))
    few = floor(task_rows * exact / (1 - exact))
    return min((few, few + 1), key=lambda n: abs(Fraction(n, max(task_rows + n, 1)) - exact))


def draw(replay: Sequence[_Element], n: int, seed: int) -> list[_Element]:
    """`n` rows of the buffer in random order; a row comes again only after all have come, then in a new order."""
    if n and not replay:
        raise AlignError("the replay data has no rows", "give replay.data rows, or set replay.ratio to 0")
    drawn: list[_Element] = []
    while len(drawn) < n:
        order = list(range(len(replay)))
        random.Random(f"replay {seed} {len(drawn)}").shuffle(order)
        drawn += [replay[index] for index in order]
    return drawn[:n]
