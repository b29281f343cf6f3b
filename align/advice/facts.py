"""What a finished run shows, as far as advice follows from it; `align/report/shown.py` reads it from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Family: TypeAlias = Literal["full", "adapter"]
"""Whether a stage trains weights of the base or an adapter: the default of a learning rate depends on it."""


@dataclass(frozen=True)
class Lost:
    """A capability whose verdict is FORGOT after a stage and was not before it.

    Attributes:
        covered: whether the replayed rows are of its kind; None where that is not known, or nothing is replayed.
        text: running text, whose scores are perplexities.
    """

    name: str
    before: float | None
    after: float | None
    covered: bool | None = None
    text: bool = False


@dataclass(frozen=True)
class Losses:
    """The evaluation losses of a stage: the first, the lowest with its step, the last."""

    first: float
    lowest: float
    lowest_step: int
    last: float


@dataclass(frozen=True)
class StageFacts:
    """One stage that gives a policy and is done.

    Attributes:
        program: `sft`, `dpo`, ...
        entry: the recipe's entry of the stage, every default written out, with the values of the attempt that stands.
        changed: by path in `entry`, the recipe's own value where the attempt that stands had another.
        acted: what a gate did that bears on these figures, in a sentence; empty where they are of the stage as the
            recipe has it.
        lost: the largest loss first; `everything_lost`: no skill that was measured is surely within its limit.
        mean: the mean of the skills before the stage and after it; `mean_fell`: its verdict became FORGOT here.
        gained: figures of the task that are surely better than before the stage; None where none was measured.
        kl: to the base on the task's prompts, in nats per answer token; `kl_before` of the policy that came in.
        usual_rate: the default learning rate of the stage's program with its method, for the lab model `LAB_RATES`
            times that; None where there is none.
        default_beta: of the stage's program; None where it has no `beta`.
        replayed: share of the rows it trained on that were replayed.
        epochs: passes over its rows.
        train: the training loss at the start and at the end, means of a tenth of its `points` each.
        evaluation: None where no evaluation loss was logged.
        overfitted: the evaluation loss rose while the training loss went on falling.
        accuracy: at the end, the share of training pairs in which the chosen answer is the likelier one.
        masked: share of the tokens of its answers that were left untrained.
        held: by penalty (`ewc`, `l2_sp`), its gradient over that of the rest of the loss, at the last step logged.
        alarms: of the rollouts, each with its remedy.
        warnings: of the stage, such as of truncated answers.
    """

    id: str
    program: str = ""
    family: Family = "adapter"
    entry: Mapping[str, Any] = field(default_factory=dict)
    changed: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    acted: str = ""
    lost: tuple[Lost, ...] = ()
    everything_lost: bool = False
    mean: tuple[float, float] | None = None
    mean_fell: bool = False
    gained: tuple[str, ...] | None = None
    kl: float | None = None
    kl_before: float | None = None
    usual_rate: float | None = None
    default_beta: float | None = None
    replays: bool = False
    replayed: float = 0.0
    steps: int = 0
    epochs: float | None = None
    train: tuple[float, float] | None = None
    points: int = 0
    evaluation: Losses | None = None
    overfitted: bool = False
    accuracy: float | None = None
    masked: float = 0.0
    held: Mapping[str, float] = field(default_factory=dict)
    alarms: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def forgot(self) -> bool:
        """Whether anything was surely lost here that was there before."""
        return bool(self.lost) or self.mean_fell

    @property
    def rate(self) -> float | None:
        """Its learning rate."""
        return self.number("training", "learning_rate")

    @property
    def beta(self) -> float | None:
        """Its `beta`, where it has one."""
        return self.number("beta")

    @property
    def holds_a_reference(self) -> bool:
        """Whether it is a preference or RL stage, which is held to the policy that it starts from."""
        return self.accuracy is not None or self.beta is not None or self.value("reward") is not None

    @property
    def loose(self) -> bool:
        """Whether its `beta` is below the default."""
        return self.beta is not None and self.default_beta is not None and self.beta < self.default_beta

    @property
    def learnt(self) -> bool | None:
        """Whether it learnt its task; None where nothing that was measured says so.

        A figure of the task that is surely better decides; else, of pairs, whether the better answer became the
        likelier one; else the evaluation loss. The training loss alone says only that nothing was learnt, if it was
        logged often enough; of a stage that is rewarded it does not even say that.
        """
        if self.gained:
            return True
        if self.accuracy is not None:
            return self.accuracy >= LEARNT_PAIRS
        if self.gained is not None:
            return False
        if self.evaluation is not None:
            return self.evaluation.lowest < (1 - LEARNT_LOSS) * self.evaluation.first
        if self.train is None or self.points < LEAST_POINTS or self.value("reward") is not None:
            return None
        return False if self.train[1] >= (1 - LEARNT_LOSS) * self.train[0] else None

    @property
    def missed(self) -> tuple[str, ...]:
        """Of what was lost, what the replayed rows do not cover; where that is not known, all of it."""
        known = any(lost.covered is not None for lost in self.lost)
        return tuple(lost.name for lost in self.lost if lost.covered is (False if known else None))

    @property
    def times_usual(self) -> float | None:
        """Its learning rate over the usual one."""
        return self.rate / self.usual_rate if self.rate and self.usual_rate else None

    @property
    def too_strong(self) -> tuple[str, ...]:
        """The penalties whose gradient is larger than the task's."""
        return tuple(name for name, ratio in self.held.items() if ratio > 1)

    def number(self, *path: str) -> float | None:
        """A number of its recipe entry."""
        found = self.value(*path)
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None

    def value(self, *path: str) -> Any:
        """A value of its recipe entry; None where it is absent."""
        found: Any = self.entry
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


FAR = 3
"""A learning rate this many times off the usual one goes back to it; one that is nearer is changed by this factor."""
LEARNT_PAIRS = 0.65
"""Share of pairs in which the better answer is the likelier one, from which on a preference stage has learnt."""
LEAST_POINTS = 12
"""Fewer logged losses than this say nothing about a trend."""
LEARNT_LOSS = 0.02
"""By how much of itself a loss has to fall to count as fallen."""
LAB_RATES = 25
"""The lab model has two million weights, and learns at about so many times the rates that suit models of billions: its
shipped recipes train adapters at 25 times the default of SFT and 20 times that of DPO, docs/benchmarks.md at 35 times
the default of full fine-tuning."""


@dataclass(frozen=True)
class RunFacts:
    """A run.

    Attributes:
        name: of the recipe.
        base: of the recipe's model.
        forgetting: the recipe's `forgetting`, every default written out.
        stages: those that are done, in order.
        unfinished: ids of stages that are not done.
        ended_by: the stage after which the gate ended the run, if it did.
        failed: the stage that ended with an error, if one did.
        measured: whether anything was measured after training.
        undecided: capabilities that the items measured cannot decide, and the items that would; None: no number would.
    """

    name: str
    base: str = ""
    forgetting: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[StageFacts, ...] = ()
    unfinished: tuple[str, ...] = ()
    ended_by: str | None = None
    failed: str | None = None
    measured: bool = True
    undecided: tuple[tuple[str, int | None], ...] = ()
