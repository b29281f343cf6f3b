"""What of the right answers is still right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from align.forgetting.statistics.intervals import wilson
from align.forgetting.statistics.transfer import Undefined


@dataclass(frozen=True)
class Retention:
    """The share of the items answered right before that still are.

    Attributes:
        low, high: 95 % interval (Wilson) for the items that were right before.
        kept, right: items still right, of those that were right before.
    """

    share: float
    low: float
    high: float
    kept: int
    right: int


def retention(pairs: Iterable[tuple[float, float]]) -> Retention | Undefined:
    """Of the scores of the same items before and after, each 0 or 1; over several probes, of all their items together.

    Its interval is one of a proportion of independent items. Over probes of different retention it is a little too wide
    rather than too narrow, as the binomial variance of a mixture is the largest.
    """
    both = list(pairs)
    if any(score not in (0, 1) for pair in both for score in pair):
        return Undefined("its scores are shares, not right or wrong")
    later = [after for before, after in both if before]
    if not later:
        return Undefined("the base has nothing right here")
    kept = int(sum(later))
    low, high = wilson(kept / len(later), len(later))
    return Retention(kept / len(later), low, high, kept, len(later))
