"""What was measured of a change: rows of the tables of docs/remedies.md, which are made of the same file as these.

`python -m benchmarks.advice --write` and `python -m benchmarks.remedies --write` write measured.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

PAGE = "docs/remedies.md"
FILE = Path(__file__).with_name("measured.json")


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)


class Figures(_Row):
    """Of report items: right answers to the task, the mean of the skills, perplexity of running text.

    Attributes:
        task: the task figure that the table is about, 0 to 1.
        evaluation: the evaluation loss at the end.
    """

    task: float
    skills: float
    perplexity: float
    evaluation: float | None = None


class Mended(_Row):
    """A run that went wrong, and what one change made of it.

    Attributes:
        case: which run, as the table calls it.
        cause, change: keys of `causes` and `changes`.
        task: name of its task figure.
    """

    case: str
    cause: str
    change: str
    made: str
    task: str
    seed: int
    before: Figures
    after: Figures


class Cell(_Row):
    """A remedy in the experiment.

    Attributes:
        name: as the table calls it; `none` is the chain without any.
        title: what to do, for advice.
        change: key of `changes` where advice makes it of the stage's own figures; else None.
        stage: the program whose entry has the keys; None: they stand in the recipe's `forgetting`.
        keys: the lines of the recipe.
        method: `full` or `lora`.
        seeds: how many.
        task_range, skills_range: the lowest and the highest of the seeds.
        cpu: seconds of training both stages, with what the remedy does before them and in them.
    """

    name: str
    method: str
    seeds: int
    task: float
    skills: float
    perplexity: float
    cpu: float
    task_range: tuple[float, float] | None = None
    skills_range: tuple[float, float] | None = None
    title: str = ""
    change: str | None = None
    stage: str | None = None
    keys: Mapping[str, Any] = {}

    @property
    def both(self) -> float:
        """What remedies are ordered by: half for the task, half for the skills."""
        return (self.task + self.skills) / 2


class Measured(_Row):
    """measured.json."""

    mended: tuple[Mended, ...] = ()
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """A row of a table, and what it says in one sentence."""

    page: str
    table: str
    row: str
    figures: str

    def __str__(self) -> str:
        return f'{self.page}, "{self.table}", {self.row}: {self.figures}'


MENDED = "Runs that went wrong"
CELLS = "Remedies side by side"


@cache
def measured() -> Measured:
    """The rows that this align ships with."""
    return Measured.model_validate(json.loads(FILE.read_text(encoding="utf-8")))


def of_change(cause: str, change: str) -> Iterator[Evidence]:
    """What a change made of a run with this cause."""
    for row in measured().mended:
        if (row.cause, row.change) == (cause, change):
            yield Evidence(PAGE, MENDED, f"{row.case}, {row.made}", _from_to(row.before, row.after, row.task))


def of_remedy(name: str, method: str) -> Iterator[Evidence]:
    """What a remedy made of the chain without one, trained by the same method."""
    cells = {cell.name: cell for cell in measured().cells if cell.method == method}
    if name in cells and "none" in cells and name != "none":
        none, cell = (
            Figures(task=one.task, skills=one.skills, perplexity=one.perplexity) for one in (cells["none"], cells[name])
        )
        yield Evidence(PAGE, CELLS, f"{name}, {method}", _from_to(none, cell, "helpdesk correct"))


def ranked(method: str) -> list[Cell]:
    """Remedies that were better than none, task and skills together, the best first."""
    cells = [cell for cell in measured().cells if cell.method == method]
    none = next((cell for cell in cells if cell.name == "none"), None)
    better = [cell for cell in cells if none is not None and cell.both > none.both]
    return sorted(better, key=lambda cell: (-cell.both, cell.cpu))


def _from_to(before: Figures, after: Figures, task: str) -> str:
    said = f"mean of the skills {before.skills:.3f} -> {after.skills:.3f}, {task} {before.task:.3f} -> {after.task:.3f}"
    said += f", perplexity {_perplexity(before.perplexity)} -> {_perplexity(after.perplexity)}"
    if before.evaluation is not None and after.evaluation is not None:
        said += f", evaluation loss {before.evaluation:.3f} -> {after.evaluation:.3f}"
    return said


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
