"""The figures of a reward model: the scores of better and worse answers, and whether it is as sure as it is right."""

from collections.abc import Iterator, Sequence

from align.report.chart import Chart, Curve, Dots, Stairs
from align.report.reward_page import RewardPage
from align.run_folder.reward_figures import CalibrationBin, ScoreHistogram


def draw(page: RewardPage, stage: str) -> Iterator[Chart]:
    """The figures that the stage gave the numbers for."""
    if page.histogram:
        yield _histogram(page.histogram, f"Scores of chosen and rejected answers of {stage}")
    if page.calibration:
        yield _calibration(page.calibration, f"Calibration of the pairs of {stage}")


def _histogram(histogram: ScoreHistogram, title: str) -> Chart:
    edges = tuple(map(float, histogram.edges))
    return Chart(
        title,
        (("chosen", "green"), ("rejected", "orange")),
        "score",
        "answers",
        [
            Stairs(edges, tuple(map(float, histogram.chosen)), "green", "chosen"),
            Stairs(edges, tuple(map(float, histogram.rejected)), "orange", "rejected"),
        ],
        size=(500, 230),
        x_name="score from",
        whole_x=False,
        whole_y=True,
    )


def _calibration(bins: Sequence[CalibrationBin], title: str) -> Chart:
    """Larger points stand for more pairs; on the dashed line the model is as often right as it says."""
    start = min(0.5, *(one.predicted for one in bins), *(one.observed for one in bins))
    most = max(one.count for one in bins) or 1
    points = tuple((one.predicted, one.observed) for one in bins)
    radii = tuple(2.5 + 4.0 * (one.count / most) ** 0.5 for one in bins)
    return Chart(
        title,
        (("share of pairs that are right", "blue"),),
        "predicted (dashed: as observed)",
        marks=[
            Curve(((start, start), (1.0, 1.0)), "ink", width=1.2, dashed=True),
            Curve(points, "blue", width=1.0),
            Dots(points, "blue", radii, name="observed"),
        ],
        size=(300, 230),
        x_name="predicted",
        whole_x=False,
        y_ends=(start - 0.03, 1.03),
    )
