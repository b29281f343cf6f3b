"""What stays sure when many probes are looked at: a statement about all of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping

from align.forgetting.statistics.changes import Change, PerplexityChange
from align.forgetting.statistics.intervals import pseudo_items

FAMILY_ERROR = 0.05
"""Chance, over all probes together, of calling one forgotten that is within its limit."""


def p_beyond(change: Change | PerplexityChange, limit: float) -> float:
    """The p-value of "this is beyond its limit", of the interval that the verdict is taken from.

    It is twice the one-sided one against a drop (or a ratio) that equals the limit, as the interval has half of its
    error at each end: of right/wrong items and of perplexities the verdict is FORGOT where it is below 0.05. One-sided
    p-values would let a family of ten probes be wrong in up to 8 % of cases where many answers change, instead of the 5
    % that are claimed (benchmarks/coverage.py), since the normal approximation is least exact in its far tail.

    Of fractional scores Student's t is far too sure where almost all items fall by a little and a few rise by much, as
    long as none of the few is among the items. There it is the larger of its p-value and that of pseudo-items, which
    are a lost and a gained item of whatever was measured.
    """
    if isinstance(change, PerplexityChange):
        if math.isinf(change.ratio):
            return 0.0
        beyond = 1.0 if change.estimate is None or limit <= 0 else change.estimate.above(math.log(limit))
    else:
        estimates = [change.estimate, pseudo_items([(change.n, change.delta, change.mean_square)])]
        beyond = max(estimate.below(-limit) for estimate in estimates if estimate is not None)
    return min(1.0, 2 * beyond)


def holm(p_values: Mapping[str, float], error: float = FAMILY_ERROR) -> tuple[str, ...]:
    """The names whose claims hold together: the chance that any of them is false is at most `error`.

    The i-th smallest of k p-values is held against error / (k - i + 1), until one is not below (Holm 1979, A simple
    sequentially rejective multiple test procedure). However the probes depend on each other, it holds.

    Returns: in the order of the mapping.
    """
    found = set()
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        if p_values[name] >= error / (len(p_values) - rank):
            break
        found.add(name)
    return tuple(name for name in p_values if name in found)
