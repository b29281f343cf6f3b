"""Learning against forgetting: for each stage what the task gained and what the skills lost, both since the base."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from align.forgetting.table import Forgetting
from align.report import findings, numbers
from align.report.chart import Chart, Curve, Dots, Mark, Point


@dataclass(frozen=True)
class BalanceLine:
    """One stage as text: the gain of each task's mean score, and the change of the mean of the skills."""

    stage: str
    gain: str
    change: str
    interval: str


@dataclass(frozen=True)
class Balance:
    """The points as a table; the figure is drawn from the same numbers."""

    lines: tuple[BalanceLine, ...]
    how: str


@dataclass(frozen=True)
class _Place:
    stage: str
    gain: float
    drop: float


def balance(forgetting: Forgetting) -> Balance | None:
    """None where no task or no skill was measured: then there is nothing to hold against each other."""
    found = list(_places(forgetting))
    if not found:
        return None
    lines = []
    for place in found:
        cell = forgetting.mean[place.stage][findings.ALL]
        lines.append(BalanceLine(place.stage, numbers.signed(place.gain), numbers.change(cell), numbers.interval(cell)))
    tasks = _tasks(forgetting)
    what = tasks[0] if len(tasks) == 1 else f"the mean of {', '.join(tasks)}"
    return Balance(tuple(lines), f"Gain: {what}, since the base. Change of the skills: their mean, since the base.")


def chart(forgetting: Forgetting) -> Chart | None:
    """One point a stage, joined along the stages that go on from each other; None as in `balance`."""
    found = list(_places(forgetting))
    if not found:
        return None
    places = {place.stage: (place.drop, place.gain) for place in found}
    marks: list[Mark] = []
    for stage, point in places.items():
        before = places.get(forgetting.parent.get(stage, ""), (0.0, 0.0))
        marks.append(Curve((before, point), "muted", width=1.2, dashed=True))
    points: tuple[Point, ...] = tuple(places.values())
    base: Point = (0.0, 0.0)
    marks.append(Dots((base,), "ink", (4.5,), shape="ring", labels=("base",)))
    marks.append(Dots(points, "blue", tuple(6.0 for _ in points), name="gain on the task", labels=tuple(places)))
    return Chart(
        "Learning against forgetting, one point a stage",
        (),
        "mean drop of the skills since the base (further right: more forgotten)",
        "gain on the task",
        marks,
        size=(560, 300),
        x_name="mean drop of the skills",
        whole_x=False,
    )


def _places(forgetting: Forgetting) -> Iterable[_Place]:
    tasks = _tasks(forgetting)
    for stage in forgetting.stages:
        row, mean = forgetting.matrix.get(stage, {}), forgetting.mean.get(stage, {}).get(findings.ALL)
        gains = [row[name].delta for name in tasks if name in row]
        known = [gain for gain in gains if gain is not None]
        if stage == findings.BASE or mean is None or mean.delta is None or not known:
            continue
        yield _Place(stage, math.fsum(known) / len(known), -mean.delta)


def _tasks(forgetting: Forgetting) -> list[str]:
    return [name for name, probe in forgetting.probes.items() if probe.kind == "task" and probe.metric == "accuracy"]
