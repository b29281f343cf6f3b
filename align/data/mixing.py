"""Which rows are held out, and which old rows are replayed among the new ones. Everything follows from the seed."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from hashlib import sha256
from math import ceil, floor
from typing import TypeVar

from align.data.formats import Example
from align.errors import AlignError

_Element = TypeVar("_Element")


def hold_out(
    examples: Sequence[Example], share: float | int, seed: int, *, lenient: bool = False
) -> tuple[list[Example], list[Example]]:
    """Split into (train, held), each in the order given; raises AlignError where one of them would be empty.

    A row's side follows from its prompt and the seed, so that the answers to one prompt are on the same side: for a
    chat, its conversation before the last answer; for a text, the text. With a float, rows that are added later move
    none of the old ones; the number held is then about share x rows. With an int at most that many rows are held, those
    that come first by the same measure.

    Args:
        share: a float in [0, 1): the share of rows to hold out; an int: their number.
        lenient: a float that would hold all rows or none holds one prompt less than all, or one; and none where all
            rows have the same.
    """
    if not share:
        return list(examples), []
    keys = [_position(example, seed) for example in examples]
    if lenient and isinstance(share, float):
        held = _at_least_one(keys, share)
    elif isinstance(share, int):
        held = _lowest(keys, share)
    elif 0 < share < 1:
        held = {key for key in keys if key < share}
    else:
        raise AlignError(
            f"the held-out share {share} is not between 0 and 1", "give 0.1 for a tenth, or a whole number"
        )
    train = [example for example, key in zip(examples, keys, strict=True) if key not in held]
    test = [example for example, key in zip(examples, keys, strict=True) if key in held]
    if not lenient:
        _refuse_empty(train, test, share, Counter(keys))
    return train, test


def _refuse_empty(train: list[Example], test: list[Example], share: float | int, sizes: Counter[Fraction]) -> None:
    rows, smallest = len(train) + len(test), min(sizes.values(), default=0)
    if rows > 1 and len(sizes) == 1:
        what = (
            f"all {rows:,} rows have the same prompt, and rows with the same prompt are held out together or not at all"
        )
        raise AlignError(what, "give other rows for it, or leave it out")
    if not train:
        what = f"holding out {share} of {rows:,} rows leaves none to train on"
        raise AlignError(what, "hold out fewer")
    if not test:
        what = f"holding out {share} of {rows:,} rows takes none of them"
        remedy = "hold out a larger share, or a whole number of rows"
        if isinstance(share, int):
            remedy = f"hold out at least {smallest}: rows with the same prompt are held out together"
        raise AlignError(what, remedy)


def _at_least_one(keys: Sequence[Fraction], share: float) -> set[Fraction]:
    """The keys below `share`; where that is all or none, all but one or one, if there are two."""
    sizes = Counter(keys)
    held = {key for key in sizes if key < share}
    if len(sizes) < 2:
        return set()
    if not held:  # the prompt with fewest rows beyond the share, of equal ones the first
        budget = ceil(share * len(keys))
        return {min(sizes, key=lambda key: (max(sizes[key], budget), key))}
    return held if len(held) < len(sizes) else held - {max(held)}


def _position(example: Example, seed: int) -> Fraction:
    """A number in [0, 1) that depends on nothing but what is asked and the seed."""
    digest = sha256(f"{seed}\n{example.asked()}".encode()).digest()
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
        raise AlignError(what, "give the share of replayed rows: 0.2 for one row in five, 0 for none")
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
