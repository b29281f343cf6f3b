"""What the gate decided after each stage, and why."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from align.report.schema import Report
from align.run_folder.decisions import Decision


@dataclass(frozen=True)
class Decided:
    """One decision: `continue with the policy as trained, decided on the split gate`, and its reasons."""

    stage: str
    tone: Literal["good", "bad", "open"]
    text: str
    reasons: tuple[str, ...]


def decided(report: Report) -> Iterable[Decided]:
    """Those of the stages that have one, in their order."""
    for stage in report.stages:
        if stage.decision is not None:
            stopped, breached = stage.decision.action == "stop", bool(stage.decision.alarming)
            tone: Literal["good", "bad", "open"] = "bad" if stopped else "open" if breached else "good"
            yield Decided(stage.id, tone, _text(stage.decision), _reasons(stage.decision))


def _text(decision: Decision) -> str:
    split = f", decided on the split {decision.split}" if decision.split else ""
    return f"{decision.action} with the policy {decision.policy.replace('_', ' ')}{split}"


def _reasons(decision: Decision) -> tuple[str, ...]:
    """The decision's own sentences; where it has none, the names of what it found."""
    broken = [f"{violation.probe}: past its limit" for violation in decision.violations]
    return tuple(decision.reasons or [*broken, *(f"{probe}: UNCLEAR" for probe in decision.unclear)])
