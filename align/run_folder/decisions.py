"""The record of a decision: what was violated after a stage, what was done about it, and which policy goes on."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, Field, JsonValue

AS_TRAINED: Final = "as_trained"
ROLLED_BACK: Final = "rolled_back"
INTERPOLATED: Final = "interpolated"


class Violation(BaseModel):
    """One limit that was broken beyond doubt.

    `low` and `high` enclose `delta` = after - before against `limit`, a drop, or the KL itself; of perplexity they
    enclose after / before against `limit`, a ratio. None stands for a number that is not finite.
    """

    probe: str
    metric: Literal["accuracy", "perplexity", "kl"]
    before: float | None
    after: float | None
    delta: float | None
    low: float | None
    high: float | None
    limit: float


class BudgetCrossed(BaseModel):
    """A budget that a stage did not keep to; bytes, seconds, a perplexity or an accuracy. None is not finite."""

    budget: str
    probe: str | None = None
    value: float | None
    limit: float


class Figure(BaseModel):
    """One figure of an attempt on the gate's items, or its validation loss: as it was, and as it is."""

    name: str
    before: float | None
    after: float | None


class Attempt(BaseModel):
    """One attempt at a stage as it was judged, for the table of the attempts.

    Attributes:
        number: 1 for the one that trains as the recipe says.
        share: of its update, where that is what was judged.
        changed: replay (a share), learning_rate, max_steps or num_train_epochs: the recipe's value and this attempt's.
        gain: of the first probe of the task, else the validation loss; None where neither is known.
        worst: the skill that fell most; None where no skill is judged.
        violated: the names of the limits.
    """

    number: int
    share: float | None = None
    changed: dict[str, tuple[float, float]] = {}
    gain: Figure | None = None
    worst: Figure | None = None
    violated: list[str] = []


class Decision(BaseModel):
    """What goes on from a stage, and why; `decision.json` of the stage.

    Attributes:
        action: of a stage whether the run goes on or stops; of an attempt that others followed `retry`.
        attempt: the one whose policy, or a share of whose update, goes on; of a rollback the last one.
        share, shape: of the update, where the policy is interpolated.
        actions: sentences on what was done about violations, in order; each is among the reasons too.
        attempts: every one that was judged, where there were several or an action was taken.
    """

    stage: str
    action: Literal["continue", "stop", "rollback", "retry", "interpolate"]
    policy: Literal["as_trained", "rolled_back", "interpolated"] = "as_trained"
    attempt: int = 1
    share: float | None = None
    shape: str | None = None
    reasons: list[str] = Field(
        description="Sentences with the figures: the violations, the budgets crossed, what was done, others."
    )
    violations: list[Violation]
    unclear: list[str] = Field(description="Probes whose items are too few to tell.")
    budgets: list[BudgetCrossed] = []
    actions: list[str] = []
    attempts: list[Attempt] = []
    thresholds: dict[str, JsonValue]
    split: Literal["gate"] = "gate"

    @property
    def not_as_trained(self) -> str:
        """In a few words, what stands in place of the policy as it was trained first; empty where nothing does."""
        if self.policy == ROLLED_BACK:
            return "rolled back"
        attempt = f"attempt {self.attempt}" if self.attempt > 1 else ""
        if self.share is None:
            return attempt
        return f"a share of {self.share:g}" + (f" of {attempt}" if attempt else "")

    @property
    def alarming(self) -> list[str]:
        """The sentences on what was violated or crossed, and on what was done about it."""
        return self.reasons[: len(self.violations) + len(self.budgets) + len(self.actions)]
