"""Small curves of what was measured inside a stage: a probe each, over steps, with its limit."""

from collections.abc import Iterator, Sequence
from typing import Final

from align.forgetting.inside import Point
from align.forgetting.judgement import MEAN
from align.report.chart import Chart, Curve, Dots, Mark, Rule
from align.report.schema import StageRecord

PANEL: Final = (240, 130)


def names(stage: StageRecord) -> list[str]:
    """The probes that were measured, their mean first."""
    return sorted({name: None for line in stage.inside for name in line.points}, key=lambda name: name != MEAN)


def draw(stage: StageRecord) -> Iterator[Chart]:
    """A panel for each probe. A dashed line is its limit, a dotted one the step whose weights were handed on."""
    insight = stage.outcome.inside if stage.outcome else None
    for name in names(stage):
        points = [(line.step, line.points[name]) for line in stage.inside if name in line.points]
        pieces = _pieces([(float(step), point.score) for step, point in points])
        broken = tuple(
            (float(step), point.score)
            for step, point in points
            if point.verdict == "FORGOT" and point.score is not None
        )
        marks: list[Mark] = []
        limit = _limit(points[0][1])
        if limit is not None:
            marks.append(Rule(limit, False, "orange", "4 3"))
        if insight and insight.kept is not None:
            marks.append(Rule(float(insight.kept), True, "muted", "1 3"))
        marks += [Curve(piece, "blue", dots=2) for piece in pieces]
        marks.append(Dots(broken, "orange", (3.0,) * len(broken)))
        told = Curve(tuple(point for piece in pieces for point in piece), "blue", name)
        if pieces:
            yield Chart(f"{name} inside {stage.id}", heads=((name, "blue"),), marks=marks, size=PANEL, told=(told,))


def _pieces(points: Sequence[tuple[float, float | None]]) -> list[tuple[tuple[float, float], ...]]:
    """The points between those without a value."""
    found: list[list[tuple[float, float]]] = [[]]
    for step, value in points:
        if value is None:
            found.append([])
        else:
            found[-1].append((step, value))
    return [tuple(piece) for piece in found if piece]


def _limit(first: Point) -> float | None:
    """Where the limit stands; None where there is none, or nothing to lose."""
    if first.limit is None or first.before is None:
        return None
    limit = first.before * first.limit if first.metric == "perplexity" else first.before - first.limit
    return limit if limit > 0 else None
