"""What the report says of a reward model: how well it tells better answers from worse ones, on pairs held out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from pydantic import JsonValue, TypeAdapter, ValidationError

from align.report import numbers
from align.report.schema import StageRecord
from align.run_folder.reward_figures import CalibrationBin, ScoreHistogram

T = TypeVar("T")

HISTOGRAM: Final = "score_histogram"
CALIBRATION: Final = "calibration"
INTERVAL: Final = "pair_accuracy_ci95"

FIGURES: Final = {
    "pair_accuracy": ("Pair accuracy", "higher is better, 0.5 is chance"),
    "pair_margin": ("Mean margin of a pair", ""),
    "calibration_error": ("Calibration error", "lower is better"),
}
"""Metrics that are told in words: the label, and how to read it."""


@dataclass(frozen=True)
class Stripe:
    """One stretch of the scores, and how many answers lie in it."""

    scores: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class RewardPage:
    """The quality of a reward model. `stripes` are the histogram as text, without its empty stretches."""

    figures: tuple[tuple[str, str], ...]
    histogram: ScoreHistogram | None
    stripes: tuple[Stripe, ...]
    calibration: tuple[CalibrationBin, ...]


def reward_page(stage: StageRecord) -> RewardPage | None:
    """None for a stage whose metrics say nothing of pairs."""
    metrics = stage.outcome.metrics if stage.outcome else {}
    histogram = _read(ScoreHistogram, metrics.get(HISTOGRAM))
    calibration = _read(tuple[CalibrationBin, ...], metrics.get(CALIBRATION)) or ()
    told = tuple(_figures(metrics, sum(one.count for one in calibration)))
    if not told and histogram is None and not calibration:
        return None
    return RewardPage(told, histogram, tuple(_stripes(histogram)) if histogram else (), calibration)


def _read(kind: type[T], value: JsonValue) -> T | None:
    """A metric as a record; None where it has another form: a stage program of the user may give its own."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return None


def _figures(metrics: Mapping[str, JsonValue], pairs: int) -> Iterable[tuple[str, str]]:
    ends = _read(tuple[float, float], metrics.get(INTERVAL))
    for key, (label, reading) in FIGURES.items():
        value = metrics.get(key)
        if isinstance(value, int | float):
            interval = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends and INTERVAL.startswith(key) else ""
            yield label, numbers.score(float(value)) + interval + (f" ({reading})" if reading else "")
    if pairs:
        yield "Pairs", f"{pairs:,}"


def _stripes(histogram: ScoreHistogram) -> Iterable[Stripe]:
    edges = zip(histogram.edges, histogram.edges[1:], strict=False)
    for (low, high), chosen, rejected in zip(edges, histogram.chosen, histogram.rejected, strict=True):
        if chosen or rejected:
            yield Stripe(f"{low:.2f} to {high:.2f}", f"{chosen:,.0f}", f"{rejected:,.0f}")
