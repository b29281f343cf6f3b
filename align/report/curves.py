"""Reads a loss curve: where it started and ended, whether it has converged, whether the model overfits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from align.report.schema import StageRecord

Points: TypeAlias = Sequence[tuple[float, float]]
"""(step, value), by step."""

MIN_POINTS: Final = 12
"""Fewer logged losses than this say nothing about a trend."""

TREND_SHARE: Final = 0.05
"""A trend over the last third below this share of the whole fall counts as flat."""

EVAL_RISE: Final = 0.02
"""An eval loss this much above its lowest value, relative to it, counts as risen."""

Tone: TypeAlias = Literal["good", "bad", "open"]

REWARD: Final = "reward"
"""The logged number by which a stage that samples its own answers is judged: its loss tells nothing."""

CONVERGED_HOW: Final = (
    f"judged by a straight line through the last third of the logged train losses (of the rewards, where a stage "
    f"samples its own answers): flat if it moves less than {TREND_SHARE:.0%} of the whole change, or less than twice "
    f"its standard error"
)
OVERFIT_HOW: Final = (
    f"judged by the eval loss: yes if it ends more than {EVAL_RISE:.0%} above its lowest value although the train loss "
    f"has gone on falling since that step"
)


@dataclass(frozen=True)
class Judgement:
    """A sentence about a curve and whether it is good news; `open` where the curve cannot tell."""

    tone: Tone
    text: str


def finite(points: Points) -> list[tuple[float, float]]:
    """The points whose value is a number."""
    return [(step, value) for step, value in points if math.isfinite(value)]


def ends(points: Points) -> tuple[float, float] | None:
    """Start and end of a curve: the means of its first and of its last tenth. None for an empty one."""
    values = [value for _, value in finite(points)]
    if not values:
        return None
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def convergence(points: Points, name: str = "train loss", *, rises: bool = False) -> Judgement:
    """Whether a curve has come to rest, as CONVERGED_HOW says; `rises`: more of it is better, as of a reward."""
    lost = [step for step, value in points if not math.isfinite(value)]
    if lost:
        return Judgement("bad", f"no, it diverged: the {name} is no number from step {lost[0]:g} on")
    if len(points) < MIN_POINTS:
        return Judgement("open", f"cannot be told: {name} was logged {len(points)} times, {MIN_POINTS} are needed")
    start, end = ends(points) or (0.0, 0.0)
    move, error = _trend(points[-max(MIN_POINTS // 2, len(points) // 3) :])
    better, worse = ("rising", "falling") if rises else ("falling", "rising")
    if abs(move) <= max(TREND_SHARE * abs(start - end), 2 * error):
        if (end <= start) if rises else (end >= start):
            return Judgement("bad", f"no, it did not learn: the {name} is level and no better than at the start")
        return Judgement("good", f"yes: the {name} is flat over the last third")
    if (move > 0) == rises:
        return Judgement("open", f"not yet: the {name} is still {better}, by {abs(move):.3g} over the last third")
    return Judgement("bad", f"no: the {name} is {worse} again, by {abs(move):.3g} over the last third")


def judge(stage: StageRecord) -> Judgement:
    """Convergence of a stage: by its reward if it samples answers and rewards them, else by its train loss."""
    reward = stage.series(REWARD) or [(float(one.number), one.score) for one in stage.rollouts if one.score is not None]
    return convergence(reward, "reward", rises=True) if reward else convergence(train_loss(stage))


def _trend(points: Points) -> tuple[float, float]:
    """Least squares: the change along the fitted line from the first point to the last, and its standard error."""
    n = len(points)
    span = points[-1][0] - points[0][0]
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    sxx = sum((x - mean_x) ** 2 for x, _ in points)
    if not sxx or n < 3:
        return 0.0, 0.0
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sxx
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope * span, math.sqrt(rest / (n - 2) / sxx) * span


def overfitting(train: Points, evaluation: Points) -> Judgement:
    """Whether the eval loss rises while the train loss falls, as OVERFIT_HOW says."""
    train, evaluation = finite(train), finite(evaluation)
    if len(evaluation) < 2:
        found = "one eval loss" if evaluation else "no eval loss"
        return Judgement("open", f"cannot be told: {found} was logged")
    low_step, low = min(evaluation, key=lambda point: point[1])
    last_step, last = evaluation[-1]
    if last - low <= EVAL_RISE * abs(low):
        return Judgement("good", f"no: the eval loss ends at {last:.3g}, at or near its lowest")
    before, after = _level(train, low_step), _level(train, last_step)
    rise = f"the eval loss rose from {low:.3g} at step {low_step:g} to {last:.3g} at step {last_step:g}"
    if before is None or after is None:
        return Judgement("open", f"{rise}, and no train loss was logged beside it")
    if after < before:
        return Judgement("bad", f"yes: {rise}, while the train loss fell from {before:.3g} to {after:.3g}")
    return Judgement("open", f"no: {rise}, but the train loss rose too, from {before:.3g} to {after:.3g}")


def _level(points: Points, step: float) -> float | None:
    """The train loss around a step: the mean of the tenth of all points that lies nearest to it, five at least."""
    nearest = sorted(points, key=lambda point: abs(point[0] - step))[: max(5, len(points) // 10)]
    return sum(value for _, value in nearest) / len(nearest) if nearest else None


def train_loss(stage: StageRecord) -> list[tuple[float, float]]:
    """The logged train losses of a stage."""
    return stage.series("loss")


def eval_loss(stage: StageRecord) -> list[tuple[float, float]]:
    """The logged eval losses of a stage."""
    return stage.series("eval_loss")
