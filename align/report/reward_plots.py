"""The figures of a reward model: the scores of better and worse answers, and whether it is as sure as it is right."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from align.report.reward_page import RewardPage
from align.report.svg import PALETTE, canvas, finish, inset
from align.run_folder.reward_figures import CalibrationBin, ScoreHistogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(page: RewardPage) -> Iterator[tuple[str, "Figure"]]:
    """Title and figure, where the stage gave the numbers for it."""
    if page.histogram:
        yield "Scores of chosen and rejected answers", _histogram(page.histogram)
    if page.calibration:
        yield "Calibration of the pairs", _calibration(page.calibration)


def _histogram(histogram: ScoreHistogram) -> "Figure":
    figure, axes = canvas(5.2, 2.3)
    inset(figure, axes, 0.55, 0.15, 0.3, 0.42)
    for side, colour, x in (("chosen", "green", 0.0), ("rejected", "orange", 0.13)):
        counts = getattr(histogram, side)
        axes.stairs(counts, histogram.edges, fill=True, color=PALETTE[colour], alpha=0.3, linewidth=0)
        axes.stairs(counts, histogram.edges, color=PALETTE[colour], linewidth=1.2)
        axes.text(x, 1.04, side, transform=axes.transAxes, color=PALETTE[colour], fontsize=9, weight="bold")
    axes.set_ylabel("answers")
    axes.yaxis.get_major_locator().set_params(integer=True)
    finish(axes, "score")
    return figure


def _calibration(bins: Sequence[CalibrationBin]) -> "Figure":
    """Larger points stand for more pairs; on the dashed line the model is as often right as it says."""
    figure, axes = canvas(3.0, 2.3)
    inset(figure, axes, 0.5, 0.15, 0.3, 0.42)
    start = min(0.5, *(one.predicted for one in bins), *(one.observed for one in bins))
    axes.plot((start, 1), (start, 1), color=PALETTE["ink"], linewidth=0.9, linestyle=(0, (4, 3)))
    most = max(one.count for one in bins) or 1
    xs, ys = [one.predicted for one in bins], [one.observed for one in bins]
    axes.plot(xs, ys, color=PALETTE["blue"], linewidth=0.8)
    axes.scatter(xs, ys, s=[12 + 48 * one.count / most for one in bins], color=PALETTE["blue"], linewidths=0)
    axes.set_title("share of pairs that are right", loc="left", color=PALETTE["blue"], fontsize=9, weight="bold")
    axes.set_ylim(start - 0.03, 1.03)
    finish(axes, "predicted (dashed: as observed)")
    return figure
