"""What a change says against the limit that it is held to, in its own unit."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

from align.forgetting.statistics.changes import Change, PerplexityChange
from align.forgetting.statistics.intervals import Z

Verdict = Literal["FORGOT", "OK", "UNCLEAR"]


def verdict(change: Change | PerplexityChange, limit: float) -> Verdict:
    """FORGOT or OK where the whole interval stands on one side of the limit, UNCLEAR where the limit is inside.

    Args:
        limit: the greatest drop allowed, 0..1; of perplexity the greatest ratio after/before allowed. An interval that
            ends on the limit has not crossed it.
    """
    if isinstance(change, PerplexityChange):
        best, worst, allowed = -change.low, -change.high, -limit
    else:
        best, worst, allowed = change.high, change.low, -limit
    if best < allowed:
        return "FORGOT"
    return "OK" if worst >= allowed else "UNCLEAR"


def items_to_decide(change: Change | PerplexityChange, limit: float, power: float = 0.8) -> int | None:
    """How many items would settle the verdict with this power, if the change stays what it now looks like.

    n' = (z(0.975) + z(power))^2 s^2 / (delta + limit)^2 (the sample size of Miller 2024, arXiv:2411.00640, with the
    distance to the limit as the effect), s being the deviation of one item's difference as the interval shows it: half
    its width times sqrt(n) / z(0.975). Perplexities are compared as logarithms. For a mean over probes it is the items
    of all together.

    Returns: a number of items; None where the estimate stands on the limit, so that no number would do.
    """
    if isinstance(change, PerplexityChange):
        if not (change.low > 0 and change.high < math.inf and limit > 0):
            return None
        distance, width = math.log(change.ratio / limit), math.log(change.high / change.low)
    else:
        distance, width = change.delta + limit, change.high - change.low
    if abs(distance) < 1e-9:
        return None
    deviation = width / 2 / Z * math.sqrt(change.n)
    return math.ceil(((Z + NormalDist().inv_cdf(power)) * deviation / distance) ** 2)
