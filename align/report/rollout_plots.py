"""The figures of a stage's rollouts: the score with its spread, a small panel for each other measurement, and the score
against the KL that it cost (Gao et al. 2022, arXiv 2210.10760)."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from align.report import curves
from align.report.alarms import words
from align.report.rollout_page import figures
from align.report.svg import PALETTE, canvas, finish, inset, thinned, whole
from align.rl.rollouts import Alarm, Rollout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS: Final = (
    ("kl", "KL to the reference, nats", "purple"),
    ("coef", "KL coefficient (log scale)", "muted"),
    ("length", "tokens an answer", "green"),
    ("entropy", "entropy of a token, nats", "blue"),
    ("clip_fraction", "share of tokens clipped", "muted"),
    ("explained_variance", "explained variance", "green"),
)
"""Fields of `Rollout` that get a small panel: the title and the colour."""

TICKS: Final = 4
"""Numbers beside the logarithmic axis of a small panel."""

LOWEST_EXPLAINED: Final = -1.0
"""Where the axis of the explained variance ends: a critic that has just begun can be far below, and is marked there."""


def large(rollouts: Sequence[Rollout], target: float | None) -> Iterator[tuple[str, "Figure"]]:
    """Title and figure of the score, and of the score against KL where there is one."""
    alarms = [alarm for one in rollouts for alarm in one.alarms]
    if figures(rollouts, "score"):
        yield "Score by rollout", _score(rollouts, alarms)
    points = [one for one in rollouts if figures([one], "score") and figures([one], "kl")]
    if points:
        yield "Score against KL", _against_kl(points, target)


def small(rollouts: Sequence[Rollout], target: float | None) -> Iterator[tuple[str, "Figure"]]:
    """Title and figure of each other measurement; one that no rollout has is left out."""
    alarms = [alarm for one in rollouts for alarm in one.alarms]
    for name, title, colour in PANELS:
        measured = [(x, y) for x, y in figures(rollouts, name) if name != "coef" or y > 0]
        if measured:
            yield f"{title} by rollout", _panel(name, measured, title, colour, target, alarms)


def _score(rollouts: Sequence[Rollout], alarms: Sequence[Alarm]) -> "Figure":
    figure, axes = canvas(5.2, 2.7)
    inset(figure, axes, 0.55, 0.15, 0.3, 0.42)
    known = [one for one in rollouts if math.isfinite(one.score)]
    xs, scores = zip(*thinned([(one.number, one.score) for one in known]), strict=True)
    spreads = [one.score_std if math.isfinite(one.score_std) else 0.0 for one in known]
    spread = [y for _, y in thinned([(one.number, s) for one, s in zip(known, spreads, strict=True)])]
    low, high = ([y + sign * s for y, s in zip(scores, spread, strict=True)] for sign in (-1, 1))
    axes.fill_between(xs, low, high, color=PALETTE["green"], alpha=0.15, linewidth=0)
    axes.plot(xs, scores, color=PALETTE["green"], linewidth=1.8, marker="o" if len(xs) == 1 else "")
    axes.set_title("score, and its standard deviation", loc="left", color=PALETTE["green"], fontsize=9, weight="bold")
    whole(axes)
    _mark(axes, alarms)
    _name(axes, alarms, rollouts)
    finish(axes, "rollout")
    return figure


def _against_kl(rollouts: Sequence[Rollout], target: float | None) -> "Figure":
    figure, axes = canvas(5.2, 2.7)
    inset(figure, axes, 0.55, 0.15, 0.3, 0.42)
    kls = [y for _, y in thinned(figures(rollouts, "kl"))]
    scores = [y for _, y in thinned(figures(rollouts, "score"))]
    shades = [0.15 + 0.85 * at / max(1, len(kls) - 1) for at in range(len(kls))]
    axes.plot(kls, scores, color=PALETTE["line"], linewidth=0.6)
    axes.scatter(kls, scores, s=18, color=PALETTE["blue"], alpha=shades, linewidths=0)
    marked = [one for one in rollouts if one.alarms]
    ring = {"markersize": 9, "fillstyle": "none", "linestyle": "none", "color": PALETTE["orange"]}
    axes.plot([one.kl for one in marked], [one.score for one in marked], marker="o", **ring)
    if target is not None:
        axes.axvline(target, color=PALETTE["ink"], linewidth=0.9, linestyle=(0, (4, 3)))
    title = "score against KL, deeper: later" + (" (ring: alarm)" if marked else "")
    axes.set_title(title, loc="left", color=PALETTE["blue"], fontsize=9, weight="bold")
    finish(axes, "KL to the reference, nats" + ("" if target is None else f" (dashed: target {target:g})"))
    return figure


def _panel(
    name: str, points: curves.Points, title: str, colour: str, target: float | None, alarms: Sequence[Alarm]
) -> "Figure":
    figure, axes = canvas(2.5, 1.3)
    inset(figure, axes, 0.5, 0.12, 0.26, 0.24)
    xs, values = zip(*thinned(points), strict=True)
    lowest = LOWEST_EXPLAINED if name == "explained_variance" else -math.inf
    drawn = [max(value, lowest) for value in values]
    axes.plot(xs, drawn, color=PALETTE[colour], linewidth=1.5, marker="o" if len(xs) == 1 else "", markersize=4)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=3)
    whole(axes)
    if name == "kl" and target is not None:
        axes.axhline(target, color=PALETTE["ink"], linewidth=0.9, linestyle=(0, (4, 3)))
        title = f"KL, nats (dashed: target {target:g})"
    if name == "coef":
        _log(axes, min(values), max(values))
    if name == "explained_variance":
        axes.axhline(0, color=PALETTE["line"], linewidth=0.9)
        below = [x for x, value in zip(xs, values, strict=True) if value < lowest]
        if below:  # drawn at the edge, with a mark that says so
            axes.plot(below, [lowest] * len(below), "v", color=PALETTE["orange"], markersize=5, clip_on=False)
            axes.set_ylim(lowest - 0.05, 1.05)
            title = f"{title} (▼ < −{-lowest:g})"
    axes.set_title(title, loc="left", fontsize=8.5, color=PALETTE[colour], weight="bold", x=0)
    _mark(axes, alarms)
    finish(axes, "")
    return figure


def _log(axes: Any, low: float, high: float) -> None:
    """A logarithmic axis with plain numbers: matplotlib writes powers of ten as formulas, which need its own fonts."""
    axes.set_yscale("log")
    ticks = log_ticks(low, high)
    axes.set_yticks(ticks, [f"{value:g}" for value in ticks])
    axes.set_yticks([], minor=True)


def log_ticks(low: float, high: float) -> list[float]:
    """At most `TICKS` round numbers between two, or else both of them in two digits."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [step * 10.0**k for k in decades for step in (1, 2, 5)]
    coarse = [10.0**k for k in decades]
    inside = [[tick for tick in ticks if low <= tick <= high] for ticks in (fine, coarse)]
    if len(inside[0]) < 2:
        return sorted({float(f"{value:.2g}") for value in (low, high)})
    if len(inside[0]) <= TICKS or len(inside[1]) < 2:
        return inside[0]
    return inside[1][:: -(-len(inside[1]) // TICKS)]


def _mark(axes: Any, alarms: Sequence[Alarm]) -> None:
    for number in sorted({alarm.rollout for alarm in alarms}):
        axes.axvline(number, color=PALETTE["orange"], linewidth=1.1, linestyle=(0, (2, 1.5)))


def _name(axes: Any, alarms: Sequence[Alarm], rollouts: Sequence[Rollout]) -> None:
    """The alarms in words beside their lines, one below the other."""
    middle = (rollouts[0].number + rollouts[-1].number) / 2
    for row, alarm in enumerate(alarms):
        right = alarm.rollout > middle
        text = f"{words(alarm.name)} " if right else f" {words(alarm.name)}"
        place = {"transform": axes.get_xaxis_transform(), "ha": "right" if right else "left", "va": "bottom"}
        axes.text(alarm.rollout, 0.02 + 0.085 * row, text, color=PALETTE["orange"], fontsize=8, **place)
