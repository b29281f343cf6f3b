"""One change of a capability as a line of a table, with the little axis that shows its interval."""

from dataclasses import dataclass
from typing import Final

from align.forgetting.table import Forgetting
from align.report import findings, numbers
from align.report.findings import Change

BAR_WIDTH: Final = 190
"""Pixels of the little axis on which a change and its interval are drawn."""


@dataclass(frozen=True)
class Bar:
    """An interval on a little axis, in pixels from its left end; `limit` is the tolerated drop."""

    low: float
    middle: float
    high: float
    zero: float
    limit: float | None


@dataclass(frozen=True)
class Line:
    """One change in a table of changes."""

    name: str
    before: str
    after: str
    change: str
    interval: str
    p: str
    verdict: str
    direction: str
    counts: str
    items: str
    bar: Bar | None


def scale(forgetting: Forgetting, changes: list[Change]) -> tuple[float, float]:
    """The ends of the little axis: one for all rows that stand together, so that they can be compared."""
    bounds = [end for c in changes if c.effect.ratio is None for end in c.effect.ci95 or () if end is not None]
    limits = [-(findings.limit(forgetting, c.name) or 0.0) for c in changes if c.effect.ratio is None]
    low, high = min([0.0, *limits, *bounds]), max([0.0, *bounds])
    margin = 0.04 * (high - low or 1)
    return low - margin, high + margin


def line(change: Change, forgetting: Forgetting, ends: tuple[float, float] = (-1.0, 1.0)) -> Line:
    """One change as text; `ends` are the values at the ends of the little axis."""
    cell, limit = change.cell, findings.limit(forgetting, change.name)

    def at(value: float) -> float:
        return round((value - ends[0]) / (ends[1] - ends[0]) * BAR_WIDTH, 1)

    bar = None
    if change.effect.ci95 and change.effect.delta is not None and change.effect.ratio is None:
        low, high = change.effect.ci95
        if low is not None and high is not None:
            bar = Bar(at(low), at(change.effect.delta), at(high), at(0), None if limit is None else at(-limit))
    return Line(
        name=change.name,
        before=numbers.score(change.before, change.probe),
        after=numbers.score(change.after, change.probe),
        change=numbers.change(change.effect),
        interval=numbers.interval(change.effect),
        p=numbers.p_value(change.effect.p_value),
        verdict=cell.verdict or "",
        direction=findings.direction(change.effect, change.probe) or "",
        counts="" if cell.lost is None else f"{cell.lost} / {'?' if cell.gained is None else cell.gained}",
        items="unknown" if cell.items_to_decide is None else f"{cell.items_to_decide:,}",
        bar=bar,
    )
