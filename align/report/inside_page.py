"""What the report says about the measurements inside a stage: curves, the same as a table, and what they ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.forgetting.inside import Measured, Point
from align.forgetting.table import ProbeEntry
from align.report import inside_plots, numbers
from align.report.schema import StageRecord
from align.run_folder.records import Insight

BRIEF = 8  # columns of the short table


@dataclass(frozen=True)
class InsideCell:
    """A figure with the verdict on it."""

    score: str
    verdict: str


@dataclass(frozen=True)
class InsideRow:
    """A probe, a cell for each column."""

    name: str
    cells: tuple[InsideCell, ...]


@dataclass(frozen=True)
class InsideTable:
    """Steps as columns, probes as rows."""

    steps: tuple[str, ...]
    rows: tuple[InsideRow, ...]


@dataclass(frozen=True)
class InsidePage:
    """The section. `brief` has the first, the last and some columns between; it is `table` where that is narrow.

    Attributes:
        told: how often was measured, and what that took.
        end: why the stage was ended; empty where it was not.
    """

    told: str
    end: str
    table: InsideTable
    brief: InsideTable


def inside_page(stage: StageRecord) -> InsidePage | None:
    """The section of one stage; None where nothing was measured inside it."""
    lines = stage.inside
    if not lines:
        return None
    told = stage.outcome.inside if stage.outcome else None
    names = inside_plots.names(stage)
    apart = max(1, -(-(len(lines) - 1) // (BRIEF - 1)))
    some = [line for at, line in enumerate(lines) if at % apart == 0 or line is lines[-1]]
    return InsidePage(
        told=_told(stage, told),
        end=_end(told) if told and told.stopped is not None else "",
        table=_table(lines, names),
        brief=_table(some, names),
    )


def _told(stage: StageRecord, told: Insight | None) -> str:
    if told is None:
        made = sum(line.origin == "inside" for line in stage.inside)
        return f"{made} so far, on the gate's half of the items."
    assert stage.outcome is not None
    if not told.measurements:
        why = f"the first would have come after step {told.every:,}" if told.every else "the stage is too short"
        return f"None: {why}."
    often = f"every {told.every:,} steps" if told.every else "at the last step"
    spent = f"CPU {numbers.seconds(told.cpu_seconds)}"
    if stage.outcome.cpu_seconds:
        spent += f", {told.cpu_seconds / stage.outcome.cpu_seconds:.0%} of the training's"
    return f"{told.measurements:,}, {often}, on the gate's half of the items; {spent}."


def _end(told: Insight) -> str:
    """Why the stage was ended."""
    return f"at step {told.stopped:,}, with the weights of step {told.kept or 0:,}: {'; '.join(told.reasons)}"


def _table(lines: Sequence[Measured], names: Sequence[str]) -> InsideTable:
    rows = [InsideRow(name, tuple(_cell(line.points.get(name)) for line in lines)) for name in names]
    return InsideTable(tuple(f"{line.step:,}" for line in lines), tuple(rows))


def _cell(point: Point | None) -> InsideCell:
    if point is None:
        return InsideCell("", "")
    return InsideCell(numbers.score(point.score, ProbeEntry(metric=point.metric)), point.verdict or "")
