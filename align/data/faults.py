"""The faults of a table, told so that they can be read: a fault that many rows have is told once."""

from __future__ import annotations

from align.errors import AlignError, FaultList

ONE_BY_ONE = 3
"""So many rows with the same fault are told one by one."""

PLACES = 3
"""So many places of further rows are named where they are told together."""


def raise_all(faults: list[AlignError], max_faults: int, things: str, *, uncounted: int = 0) -> None:
    """Raise the first `max_faults` faults, those of many rows as one, and the number of the others.

    Args:
        things: what the others are called.
        uncounted: further ones that were not kept.
    """
    groups: dict[tuple[str, str], list[AlignError]] = {}
    for fault in faults:
        groups.setdefault((fault.what, fault.remedy), []).append(fault)
    told: list[tuple[int, AlignError]] = []  # the faults that one stands for, and it
    for group in groups.values():
        told += [(1, fault) for fault in group] if len(group) <= ONE_BY_ONE else [(len(group), _together(group))]
    shown = FaultList()
    shown.found.extend(fault for _, fault in told[:max_faults])
    others = sum(count for count, _ in told[max_faults:]) + uncounted
    if others:
        shown.add(f"and {others:,} more {things}")
    shown.raise_any()


def _together(group: list[AlignError]) -> AlignError:
    first, *others = group
    places = [str(fault.place) for fault in others[:PLACES]]
    more = f", and {len(others) - PLACES:,} more" if len(others) > PLACES else ""
    what = f"{first.what} (also in {len(others):,} more rows: {', '.join(places)}{more})"
    return AlignError(what, first.remedy, place=first.place, exit=first.exit)
