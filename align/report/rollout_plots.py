"""The figures of a stage's rollouts: the score with its spread, a small panel for each other measurement, and the score
against the KL that it cost (Gao et al. 2022, arXiv 2210.10760)."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from align.report import curves
from align.report.alarms import words
from align.report.chart import Band, Chart, Colour, Curve, Dots, Mark, Rule
from align.report.rollout_page import figures
from align.report.svg import thinned
from align.rl.rollouts import Alarm, Rollout

PANELS: Final[tuple[tuple[str, str, Colour], ...]] = (
    ("kl", "KL to the reference, nats", "purple"),
    ("coef", "KL coefficient (log scale)", "muted"),
    ("length", "tokens an answer", "green"),
    ("entropy", "entropy of a token, nats", "blue"),
    ("clip_fraction", "share of tokens clipped", "muted"),
    ("explained_variance", "explained variance", "green"),
)
"""Fields of `Rollout` that get a small panel: the title and the colour."""

LOWEST_EXPLAINED: Final = -1.0
"""Where the axis of the explained variance ends: a critic that has just begun can be far below, and is marked there."""

ALARM: Final = "3 2.5"
TARGET: Final = "5 4"
"""Dashes of a line."""


def large(rollouts: Sequence[Rollout], target: float | None, stage: str) -> Iterator[Chart]:
    """The score, and the score against KL where there is one."""
    alarms = [alarm for one in rollouts for alarm in one.alarms]
    if figures(rollouts, "score"):
        yield _score(rollouts, alarms, f"Score by rollout of {stage}")
    points = [one for one in rollouts if figures([one], "score") and figures([one], "kl")]
    if points:
        yield _against_kl(points, target, f"Score against KL of {stage}")


def small(rollouts: Sequence[Rollout], target: float | None, stage: str) -> Iterator[Chart]:
    """Each other measurement; one that no rollout has is left out."""
    alarms = [alarm for one in rollouts for alarm in one.alarms]
    for name, title, colour in PANELS:
        measured = [(x, y) for x, y in figures(rollouts, name) if name != "coef" or y > 0]
        if measured:
            head = title if name != "kl" or target is None else f"KL, nats (dashed: target {target:g})"
            yield _panel(name, measured, Chart(f"{title} by rollout of {stage}", ((head, colour),)), target, alarms)


def _score(rollouts: Sequence[Rollout], alarms: Sequence[Alarm], title: str) -> Chart:
    known = [one for one in rollouts if one.score is not None and math.isfinite(one.score)]
    points = thinned([(one.number, one.score) for one in known if one.score is not None])
    spreads = [one.score_std if one.score_std is not None and math.isfinite(one.score_std) else 0.0 for one in known]
    spread = [y for _, y in thinned([(one.number, s) for one, s in zip(known, spreads, strict=True)])]
    low, high = (tuple((x, y + sign * s) for (x, y), s in zip(points, spread, strict=True)) for sign in (-1, 1))
    heads: tuple[tuple[str, Colour], ...] = (("score, and its standard deviation", "green"),)
    marks: list[Mark] = [Band(low, high, "green"), Curve(points, "green", "score")]
    middle = (rollouts[0].number + rollouts[-1].number) / 2
    rows = {True: 0, False: 0}
    for alarm in alarms:  # the words one below the other
        side = alarm.rollout > middle
        marks.append(Rule(alarm.rollout, True, "orange", ALARM, words(alarm.name), rows[side]))
        rows[side] += 1
    return Chart(title, heads, "rollout", marks=marks, x_name="rollout")


def _against_kl(rollouts: Sequence[Rollout], target: float | None, title: str) -> Chart:
    kls = [y for _, y in thinned(figures(rollouts, "kl"))]
    scores = [y for _, y in thinned(figures(rollouts, "score"))]
    points = tuple(zip(kls, scores, strict=True))
    shades = tuple(0.15 + 0.85 * at / max(1, len(kls) - 1) for at in range(len(kls)))
    marked = [one for one in rollouts if one.alarms]
    rings = tuple((one.kl, one.score) for one in marked if one.kl is not None and one.score is not None)
    marks: list[Mark] = [
        Curve(points, "line", width=0.8),
        Dots(points, "blue", tuple(3.5 for _ in points), shades, name="score"),
        Dots(rings, "orange", tuple(7.0 for _ in rings), shape="ring"),
    ]
    if target is not None:
        marks.append(Rule(target, True, "ink", TARGET))
    head = "score against KL, deeper: later" + (" (ring: alarm)" if marked else "")
    label = "KL to the reference, nats" + ("" if target is None else f" (dashed: target {target:g})")
    return Chart(title, ((head, "blue"),), label, marks=marks, x_name="KL, nats", whole_x=False)


def _panel(name: str, points: curves.Points, chart: Chart, target: float | None, alarms: Sequence[Alarm]) -> Chart:
    """Fill a small panel with one measurement, the target if it has one, and the alarms."""
    (head, colour), *_ = chart.heads
    drawn = thinned(points)
    chart.size, chart.x_name, chart.log_y = (240, 130), "rollout", name == "coef"
    if name == "explained_variance":
        below = tuple((x, LOWEST_EXPLAINED) for x, value in drawn if value < LOWEST_EXPLAINED)
        inside = tuple((x, max(value, LOWEST_EXPLAINED)) for x, value in drawn)
        chart.marks = [Curve(inside, colour, width=1.8), Rule(0.0, False, "line")]
        chart.told = (Curve(drawn, colour, head),)
        if below:  # drawn at the edge, with a mark that says so
            chart.marks.append(Dots(below, "orange", tuple(3.5 for _ in below), shape="down"))
            chart.y_ends = (LOWEST_EXPLAINED - 0.1, 1.05)
            chart.heads = ((f"{head} (▼ < −{-LOWEST_EXPLAINED:g})", colour),)
    else:
        chart.marks = [Curve(drawn, colour, head, width=1.8)]
    if name == "kl" and target is not None:
        chart.marks.append(Rule(target, False, "ink", TARGET))
    chart.marks += [Rule(number, True, "orange", ALARM) for number in sorted({alarm.rollout for alarm in alarms})]
    return chart
