"""How far a run is that is under way: the stage, its step, and the time that the stage will still take."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from align.report import numbers
from align.report.schema import Report, StageRecord
from align.run_folder.records import LOADING

RELOAD_SECONDS: Final = 10
"""After which the page of a run that is under way loads itself again."""


@dataclass(frozen=True)
class UnderWay:
    """A run at work.

    Attributes:
        text: one line: "stage 2 of 3 (dpo), step 40 of 120, about 3 min 10 s left in this stage".
        share: of the stage's steps that are done; None where that is not known.
        reload: seconds after which to look again.
    """

    text: str
    share: float | None = None
    reload: int = RELOAD_SECONDS


def under_way(report: Report) -> UnderWay | None:
    """What the run is at; None where it has ended, in whatever way."""
    if not report.live:
        return None
    running = next((stage for stage in report.stages if stage.entry.status == "running"), None)
    if running is None:
        undone = [stage for stage in report.stages if stage.entry.status != "done"]
        return UnderWay("between two stages" if undone else "all stages are done")
    place = [stage.id for stage in report.stages].index(running.id) + 1
    name = f"stage {place} of {len(report.stages)} ({running.id})"
    step, total, left = _steps(running)
    if running.at and running.at != LOADING and not (step and total and step < total):
        return UnderWay(f"{name}, {running.at}")
    if step is None or not total:
        return UnderWay(f"{name}, {LOADING}")
    if step >= total:
        return UnderWay(f"{name}, trained, measuring", 1.0)
    time = f", about {numbers.seconds(left)} left in this stage" if left else ""
    return UnderWay(f"{name}, step {step:,.0f} of {total:,.0f}{time}", step / total)


def _steps(stage: StageRecord) -> tuple[float | None, float | None, float | None]:
    """The step, the last one that there will be, and the seconds until then, by the pace of this attempt."""
    began = datetime.fromisoformat(stage.entry.started).timestamp() if stage.entry.started else 0.0
    lines = [line for line in stage.steps if line.values.get("time", 0.0) >= began - 1 and "max_steps" in line.values]
    if not lines:
        return None, None, None
    first, last = lines[0], lines[-1]
    total, done = last.values["max_steps"], last.step - first.step
    if done <= 0:
        return last.step, total, None
    seconds = (last.values["time"] - first.values["time"]) / done * (total - last.step)
    return last.step, total, seconds
