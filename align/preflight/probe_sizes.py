"""Whether a user's probe has items enough to be judged. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import ProbeInfo
from align.forgetting.own.kinds import Task
from align.forgetting.probes import Texts
from align.forgetting.statistics import pseudo_item_interval
from align.preflight.own_probes import OwnProbe


def notes(probes: Iterable[OwnProbe], limits: ForgettingKeys) -> Iterator[str]:
    """What is to be said of probes whose halves are too small for their limit: a sentence for each limit."""
    small: dict[tuple[float, int], dict[str, str]] = {}
    for own in probes:
        sizes, limit = _sizes(own), limits.limit(own.name, ProbeInfo("accuracy", True, "skill"))
        needed = fewest(limit) if limit and sizes else None
        if limit is not None and needed is not None and any(size < needed for size in sizes.values()):
            small.setdefault((limit, needed), {})[f"'{own.name}'"] = " and ".join(
                f"{size} {'item' if size == 1 else 'items'} in the {half}" for half, size in sizes.items()
            )
    for (limit, needed), have in small.items():
        few = f"too few to show that a drop stays within {limit:g}"
        yield f"{_have(have)}, {few}: that takes {needed} in each half, and a few hundred to detect a drop"


def _have(items: Mapping[str, str]) -> str:
    """Which probes have how many items, by their names."""
    if len(items) == 1:
        name, have = next(iter(items.items()))
        return f"the probe {name} has {have}"
    if len(set(items.values())) == 1:
        *others, last = items
        return f"the probes {', '.join(others)} and {last} each have {items[last]}"
    return "; ".join(f"the probe {name} has {have}" for name, have in items.items())


def _sizes(own: OwnProbe) -> Mapping[str, int]:
    """Items of each half; empty of running text, which no drop is judged of, and where only the harness knows."""
    probe = own.probe
    if isinstance(probe, Texts):
        return {}
    if isinstance(probe, Task):  # of one that has as many
        return {"gate": (probe.limit + 1) // 2, "report": probe.limit // 2} if probe.limit and not probe.group else {}
    return {split: len(half) for split, half in own.items.items()}


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
