"""How many right/wrong items a limit needs, and how small a drop some number of items can show."""

from __future__ import annotations

import math

from align.forgetting.statistics.intervals import Z, pseudo_items


def smallest_drop(n: int, limit: float) -> float | None:
    """The smallest drop over n items that is surely beyond the limit, where nothing was gained.

    Returns: a share of the items; None where losing every one of them would leave the verdict open.

    Raises:
        ValueError: no items.
    """
    if n < 1:
        raise ValueError("no items show no drop")
    if not _is_beyond(n, n, limit):
        return None
    low, high = 0, n  # lost items: not enough, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _is_beyond(middle, n, limit) else (middle, high)
    return high / n


def items_needed(limit: float) -> int | None:
    """The fewest items with which both sure verdicts can occur: OK where no answer changed, FORGOT where all are lost.

    OK takes z sqrt(2) / (n + 2) <= limit.

    Returns: None where no number would do: no drop is within a limit of 0 for certain, and none is beyond one of 1.
    """
    if not 0 < limit < 1:
        return None
    n = max(1, math.ceil(Z * math.sqrt(2) / limit - 2 - 1e-9))
    while not _is_beyond(n, n, limit):
        n += 1
    return n


def _is_beyond(lost: int, n: int, limit: float) -> bool:
    return pseudo_items([(n, -lost / n, lost / n)]).interval()[1] < -limit
