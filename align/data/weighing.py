"""Several sources mixed by weight: how many rows of each, and which."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from math import floor
from typing import TypeVar

from align.data.replay import quotas
from align.data.sources import DataSource
from align.errors import AlignError

_Element = TypeVar("_Element")


def weighed(
    sources: Sequence[DataSource], parts: Sequence[list[_Element]], seed: int
) -> tuple[list[list[_Element]], list[str]]:
    """What is taken of the rows of each source, and a note that says it. No row comes twice: the source that has the
    fewest for its weight gives all, or all but one, and each has its share of the whole, to within one row.

    Args:
        parts: the rows of each source; those that are taken stay in their order.

    Raises:
        AlignError: some sources have a weight and others have none, or one would give no row.
    """
    weights = [source.weight for source in sources]
    if all(weight is None for weight in weights):
        return list(parts), []
    given = [Fraction(str(weight)) for weight in weights if weight is not None]
    if len(given) < len(weights):
        without = next(source.source for source in sources if source.weight is None)
        raise AlignError(f"'{without}' has no `weight`, but other sources do", "give each of them one, or none")
    if len(given) == 1:
        raise AlignError(f"'{sources[0].source}' has a `weight`, but it is the only source", "remove the weight")
    empty = next((source.source for source, part in zip(sources, parts, strict=True) if not part), None)
    if empty is not None:
        raise AlignError(f"'{empty}' has a `weight`, but no row that is trained on", "leave it out")
    whole = floor(min(len(part) * sum(given) / weight for part, weight in zip(parts, given, strict=True)))
    counts = quotas(whole, given)
    told = []
    for source, part, count in zip(sources, parts, counts, strict=True):
        if not count:
            what = (
                f"by weight no row of '{source.source}' is taken: it has {len(part):,}, and {whole:,} are taken of all"
            )
            raise AlignError(what, "give other weights")
        told.append(f"{count:,} of {len(part):,} rows of '{source.source}' ({count / whole:.1%})")
    each = enumerate(zip(parts, counts, strict=True))
    return [_some(part, count, f"weight {seed} {i}") for i, (part, count) in each], [f"by weight: {', '.join(told)}"]


def _some(part: list[_Element], count: int, seed: str) -> list[_Element]:
    """`count` of the rows, chosen at random, in their order."""
    return [part[i] for i in sorted(random.Random(seed).sample(range(len(part)), count))]
