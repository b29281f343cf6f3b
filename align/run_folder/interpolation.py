"""What a stage's update is interpolated by, and what came of it: files in the stage's folder."""

from __future__ import annotations

from typing import Any, Literal

from align.run_folder import files, reading
from align.run_folder.records import Policy, Record
from align.run_folder.stage_dir import StageDir

Shape = Literal["flat", "lines"]


class InterpolationRequest(Record):
    """request.json: what the parent asks for.

    Attributes:
        shares: in the order in which they are tried, from the largest.
        limits: keys of the recipe's `forgetting` that are limits.
        made_of: hash of what the policy at a share and its measurement follow from, without the limits.
        key: of this request; the result of another one is not taken for its.
    """

    stage: str
    shape: Shape
    shares: tuple[float, ...]
    limits: dict[str, Any]
    made_of: str = ""
    key: str


class Tried(Record):
    """One share, judged on the gate's items by the figures themselves, not by their intervals.

    Attributes:
        worst: the probe, or the mean of the skills, that has used up most of its limit.
        metric: what `figure` and `limit` of it are: a drop of accuracy, a perplexity after / before, a KL.
        figure: None where it is not finite.
        within: whether every limit is kept to.
    """

    share: float
    worst: str | None = None
    metric: Literal["accuracy", "perplexity", "kl"] | None = None
    figure: float | None = None
    limit: float | None = None
    within: bool


class Gain(Record):
    """A probe that the whole update had made better, on the report's items: how much of that is kept."""

    probe: str
    base: float
    trained: float
    decided: float


class InterpolationResult(Record):
    """result.json: written last, after the files of the policy and its measurement.

    Attributes:
        key, made_of: of the request.
        share: None where no share is within the limits.
        policy: in `decided/` of the stage; None with `share`.
        rank: of the adapter, the largest of its modules; None of one without ranks, and of weights.
        gains: what the update had made better; empty without `share`.
        sentence: what was found.
    """

    key: str
    made_of: str = ""
    shape: Shape
    share: float | None = None
    policy: Policy | None = None
    rank: int | None = None
    tried: tuple[Tried, ...] = ()
    gains: tuple[Gain, ...] = ()
    sentence: str = ""


def is_whole(here: StageDir, result: InterpolationResult) -> bool:
    """Whether the files of an interpolated policy are as they were written, or there are none to be."""
    if result.policy is None:
        return True
    decided = reading.outcome(here.decided)
    return decided is not None and files.damaged(decided.artifacts, here.decided.root) is None
