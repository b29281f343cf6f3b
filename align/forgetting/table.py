"""The matrix as it stands in forgetting.json: capability by stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from pydantic import JsonValue

from align.forgetting.distances import Drift, TaskKl
from align.forgetting.measurements import Split
from align.forgetting.statistics import FAMILY_ERROR, Verdict
from align.run_folder.records import FORMAT, Record

BASE = "base"
ALL = "all"  # of the groups of skills

Number: TypeAlias = float | None
Interval: TypeAlias = tuple[Number, Number]
"""Low and high; None for an end that is not finite."""


class ProbeEntry(Record):
    """One probe.

    Attributes:
        kind: skill, task or text; agreement in runs of an older align.
        replayed: whether any stage replayed it; None where that is not known, or nothing is replayed.
        n: items.
        limit: what its verdicts are held against, a drop or a perplexity ratio; None where it has none.
    """

    metric: str = "accuracy"
    higher_is_better: bool = True
    kind: str = "skill"
    replayed: bool | None = None
    n: int | None = None
    limit: Number = None

    @property
    def stands_apart(self) -> bool:
        """Whether it is no capability: agreement with the base moves with anything that is learnt."""
        return self.kind == "agreement" and self.limit is None


class Scored(Record):
    """A score over `n` items; of a mean over skills `probes` counts these."""

    score: Number = None
    probes: int | None = None
    n: int | None = None


class Effect(Record):
    """A change. `ci95` is the interval of `ratio`, after / before, where there is one (perplexity), else of `delta`."""

    delta: Number = None
    ci95: Interval | None = None
    p_value: Number = None
    ratio: Number = None


class NoValue(Record):
    """A figure that has no meaning here, and why."""

    undefined: str


class Kept(Record):
    """The share of the items that the base had right and that are still right: `kept` of `right` items."""

    share: Number = None
    ci95: Interval | None = None
    kept: int = 0
    right: int = 0


class RightChoice(Record):
    """The mean probability of the right choice among the choices; a model is sure of fewer answers before it gets them
    wrong. `ci95` is the paired interval of `delta`."""

    before: Number = None
    after: Number = None
    delta: Number = None
    ci95: Interval | None = None
    n: int = 0


class Family(Record):
    """What is surely past its limit although `judged` probes were looked at: the chance that any of `beyond` is not is
    at most `error` (Holm 1979)."""

    judged: int
    beyond: tuple[str, ...] = ()
    error: float = FAMILY_ERROR


class Cell(Effect, Scored):  # the keys of Scored come first in the file
    """One probe after one stage, or the unweighted mean over a group of skills. The base has a score only, everything
    else is against the base.

    Attributes:
        verdict: None where no limit is set; of the means only that of all skills has one.
        lost, gained: items; None of perplexity.
        items_to_decide: None unless the verdict is UNCLEAR and a number of items would settle it.
        retention: of a mean over a group of skills that of all their items together; None of perplexity.
        right_choice: None where the probe has no choices.
    """

    verdict: Verdict | None = None
    lost: int | None = None
    gained: int | None = None
    items_to_decide: int | None = None
    since_parent: Effect | None = None
    retention: Kept | NoValue | None = None
    right_choice: RightChoice | None = None


Figure: TypeAlias = float | NoValue | None
"""A number, or the reason why there is none."""


class Forgetting(Record):
    """forgetting.json. An interval is missing where its figure has no value.

    Attributes:
        rolled_back: stages from which nothing goes on; their rows are of what they trained.
        interpolated: of the stages from which a share of the update goes on; their rows are of that share.
        left_out: probes of the base that have no items in this split.
        family: of the stages of which at least two probes are judged.
        task_kl, drift: how far each stage's policy is from the base; a stage of an older run is absent.
    """

    format: int = FORMAT
    split: Split | None = None
    stages: tuple[str, ...] = ()
    parent: Mapping[str, str] = {}
    no_row: Mapping[str, str] = {}
    probes: Mapping[str, ProbeEntry] = {}
    left_out: Mapping[str, str] = {}
    matrix: Mapping[str, Mapping[str, Cell]] = {}
    mean: Mapping[str, Mapping[str, Cell]] = {}
    backward_transfer: Mapping[str, Figure] = {}
    backward_transfer_ci95: Mapping[str, Interval] = {}
    average_forgetting: Mapping[str, Figure] = {}
    average_forgetting_ci95: Mapping[str, Interval] = {}
    family: Mapping[str, Family] = {}
    task_kl: Mapping[str, TaskKl] = {}
    drift: Mapping[str, Drift] = {}
    thresholds: Mapping[str, JsonValue] = {}
    rolled_back: tuple[str, ...] = ()
    interpolated: Mapping[str, float] = {}
