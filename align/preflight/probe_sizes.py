"""Whether a user's probe has items enough to be judged. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import ProbeInfo
from align.forgetting.own.kinds import Task
from align.forgetting.probes import Texts
from align.forgetting.statistics import pseudo_item_interval
from align.preflight.own_probes import OwnProbe


def notes(own: OwnProbe, limits: ForgettingKeys) -> Iterator[str]:
    """What is to be said of a probe whose halves are too small for its limit."""
    name, probe = own.name, own.probe
    sizes: Mapping[str, int] = {split: len(half) for split, half in own.items.items()}
    if isinstance(probe, Texts):
        return
    if isinstance(probe, Task) and probe.limit and not probe.group:  # of a task that has as many
        sizes = {"gate": (probe.limit + 1) // 2, "report": probe.limit // 2}
    limit = limits.limit(name, ProbeInfo("accuracy", True, "skill"))
    needed = fewest(limit) if limit else None
    if needed is None:
        return
    if any(size < needed for size in sizes.values()):
        have = " and ".join(f"{size} {'item' if size == 1 else 'items'} in the {half}" for half, size in sizes.items())
        what = f"the probe '{name}' has {have}, too few to show that a drop stays within {limit:g}"
        yield f"{what}: that takes {needed} in each half, and a few hundred to detect a drop"


def fewest(limit: float) -> int | None:
    """With how many items, at the least, a model that gives the same answers as before is surely within the limit.

    By the interval of `statistics.pseudo_item_interval`, which narrows as the items grow in number.
    """
    low, high = 1, 2
    while not _decides(high, limit):
        low, high = high, high * 2
        if high > 2**24:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _decides(middle, limit) else (middle, high)
    return high


def _decides(items: int, limit: float) -> bool:
    return pseudo_item_interval([(items, 0.0, 0.0)])[0] >= -limit
