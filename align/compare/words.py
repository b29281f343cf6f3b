"""The texts of runs side by side: the same in the terminal and on the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Final

from pydantic import JsonValue

from align.compare.table import Row, RunsCompared, Table, Training
from align.forgetting.table import ProbeEntry
from align.report import findings, numbers
from align.report.findings import Group

NONE: Final = "-"
FIGURES: Final[dict[str, Callable[[Training], str]]] = {
    "steps": lambda one: _count(one.steps),
    "batch": lambda one: _count(one.batch),
    "rows": lambda one: _count(one.rows),
    "replay rows": lambda one: _count(one.replay_rows),
    "trained weights": lambda one: _count(one.trainable),
    "train loss at the end": lambda one: _loss(one.train_loss),
    "eval loss at the end": lambda one: _loss(one.eval_loss),
    "KL, nats an answer": lambda one: _loss(one.kl),
    "CPU time": lambda one: NONE if one.cpu_seconds is None else numbers.seconds(one.cpu_seconds),
    "peak memory": lambda one: NONE if one.peak_memory_bytes is None else numbers.memory(one.peak_memory_bytes),
    "after the gate": lambda one: one.acted or NONE,
}


def title(found: RunsCompared, table: Table) -> str:
    """`after dpo`, or which stage of which run."""
    if len(set(table.stages)) == 1:
        return f"after {table.stages[0]}"
    return f"after {', '.join(f'{stage} of {run.label}' for stage, run in zip(table.stages, found.runs, strict=True))}"


def conclusion(found: RunsCompared) -> list[str]:
    """Sentences: each run against the first, which is the best, and what may still change."""
    said = [finding.sentence for finding in found.findings]
    if len(found.runs) > 2:
        said.append(f"{found.best} is better than each of the others for certain." if found.best else NO_BEST)
    said += [f"{run.label} is under way: its figures may change." for run in found.runs if run.under_way]
    return said


NO_BEST: Final = "None of them is better than each of the others for certain."


def how(found: RunsCompared) -> str:
    """How the figures came about."""
    compared = len(found.tables[0].rows)
    return (
        f"Change: the run minus {found.runs[0].label}, on the same {found.split} items, with paired 95 % intervals; of "
        f"{compared} {'probe' if compared == 1 else 'probes'} without any difference {compared * 0.05:.2g} would show "
        "a sure one by chance. Verdicts: each run against its own base."
    )


JUDGED: Final = (
    "A run is better than another if the mean of the skills, a figure of the task or the perplexity of running text is "
    "surely better and none of these is surely worse, by the last policies. A single skill does not count by itself."
)


def groups(table: Table) -> Iterator[tuple[str, list[Row]]]:
    """Rows under their headings, as in the report; whether a skill was replayed differs from run to run."""
    kinds: dict[str, list[Row]] = {}
    for group in GROUPS:
        kinds[group.title] = [row for row in table.rows if row.kind == group.key]
    other = [row for row in table.rows if row.kind not in {group.key for group in GROUPS}]
    for heading, rows in {**kinds, "Other": other}.items():
        if rows:
            yield heading, rows


GROUPS: Final = (
    Group("task", "The task", ()),
    Group("skill", "Skills of the base", ()),
    Group("text", "Text", ()),
    Group(findings.APART, "Not judged", ()),
    Group("agreement", "Agreement with the base", ()),
)


def score(row: Row, at: int) -> str:
    """What a run scores."""
    return numbers.score(row.values[at].score, ProbeEntry(metric=row.metric))


def training(found: RunsCompared) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """Stage by stage: each figure that any run has, with a text for each run."""
    for stage, each in found.training.items():
        rows = [(label, [NONE if one is None else text(one) for one in each]) for label, text in FIGURES.items()]
        kept = [(label, texts) for label, texts in rows if any(one not in (NONE, "0") for one in texts)]
        yield stage, kept


def settings(found: RunsCompared) -> Iterator[tuple[str, list[str]]]:
    """Each dotted key that differs, with its value in each run."""
    for key, values in found.settings.items():
        yield key, [_value(value) for value in values]


def _value(value: JsonValue) -> str:
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _loss(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"
