"""What the gate decided after each stage, why, and what was tried before."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from align.report.schema import Report
from align.report.sentence import join
from align.run_folder.decisions import INTERPOLATED, ROLLED_BACK, Attempt, Decision, Figure


@dataclass(frozen=True)
class AttemptRow:
    """One attempt at a stage, or a share of its update, as it was judged on the gate's items."""

    attempt: str
    changed: str
    gain: str
    worst: str
    verdict: str
    goes_on: bool


@dataclass(frozen=True)
class Decided:
    """One decision: `continue with the policy as trained, decided on the gate's items`, and its reasons; `attempts`
    where something was tried."""

    stage: str
    tone: Literal["good", "bad", "open"]
    text: str
    reasons: tuple[str, ...]
    attempts: tuple[AttemptRow, ...] = ()


def decided(report: Report) -> Iterable[Decided]:
    """Those of the stages that have one, in their order."""
    for stage in report.stages:
        if stage.decision is not None:
            stopped, breached = stage.decision.action == "stop", bool(stage.decision.alarming)
            tone: Literal["good", "bad", "open"] = "bad" if stopped else "open" if breached else "good"
            rows = tuple(_row(one, stage.decision) for one in stage.decision.attempts)
            yield Decided(stage.id, tone, text(stage.decision), _reasons(stage.decision), rows)


def text(decision: Decision) -> str:
    """What goes on, in words."""
    split = f", decided on the {decision.split}'s items" if decision.split else ""
    which = "the policy before it (rolled back)" if decision.policy == ROLLED_BACK else "the policy as trained"
    if decision.policy == INTERPOLATED and decision.share is not None:
        which = f"a share of {decision.share:g} of the update ({decision.shape})"
    attempt = f" (attempt {decision.attempt})" if decision.attempt > 1 else ""
    return f"{decision.action} with {which}{attempt}{split}"


def _reasons(decision: Decision) -> tuple[str, ...]:
    """The decision's own sentences; where it has none, the names of what it found."""
    broken = [f"{violation.probe}: past its limit" for violation in decision.violations]
    return tuple(decision.reasons or [*broken, *(f"{probe}: UNCLEAR" for probe in decision.unclear)])


def _row(one: Attempt, decision: Decision) -> AttemptRow:
    share = f", a share of {one.share:g}" if one.share is not None else ""
    changed = [f"{name} {before:g} to {after:g}" for name, (before, after) in one.changed.items()]
    stands = (one.number, one.share) == (decision.attempt, decision.share)
    goes_on = stands and decision.policy != ROLLED_BACK and decision.action != "stop"
    return AttemptRow(
        attempt=f"{one.number}{share}",
        changed=", ".join(changed) or "nothing",
        gain=_figure(one.gain),
        worst=_figure(one.worst),
        verdict=f"past its limit: {join(one.violated)}" if one.violated else "no limit surely broken",
        goes_on=goes_on,
    )


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "not measured"
    before, after = ("not finite" if value is None else f"{value:.3g}" for value in (figure.before, figure.after))
    return f"{figure.name} {before} to {after}"
