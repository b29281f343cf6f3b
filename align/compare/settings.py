"""The settings that differ between the recipes of runs, and what their stages took and reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import JsonValue

from align.compare.sides import Side
from align.compare.table import Training
from align.forgetting.rounding import number
from align.report import curves
from align.report.schema import StageRecord
from align.run_folder import reading
from align.run_folder.paths import RunDir
from align.run_folder.records import Rows, Ticket

ABSENT = None  # in place of the value of a key that a recipe does not have, or leaves empty


def different(sides: Sequence[Side]) -> dict[str, tuple[JsonValue, ...]]:
    """Dotted key -> its value in each recipe, None where there is none; the name of a run is no setting.

    Rows count as a setting of their own where their content differs: a file may have changed under its name.
    """
    flat = [{**dict(_flat(side.recipe)), **_rows(side), "align": side.report.run.align} for side in sides]
    keys = dict.fromkeys(key for one in flat for key in one if key != "name")
    found = {key: tuple(one.get(key, ABSENT) for one in flat) for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values[1:])}


def training(sides: Sequence[Side]) -> dict[str, tuple[Training | None, ...]]:
    """Stage -> what it took and where it ended in each run, None where a run has not done it."""
    done = [{stage.id: _training(stage) for stage in side.report.stages if stage.outcome} for side in sides]
    ids = dict.fromkeys(id for stages in done for id in stages)
    return {id: tuple(stages.get(id) for stages in done) for id in ids}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    """`stages.sft.training.learning_rate`; the parts of a list by their number from 0, if they have parts."""
    parts: Any = None
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = enumerate(value)
    if not parts:
        yield prefix, ABSENT if value in ({}, []) else value
        return
    for key, inner in parts:
        yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))


def _rows(side: Side) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for stage in side.report.stages:
        ticket = reading.whole(RunDir(side.folder).stage(stage.id).ticket, Ticket)
        if ticket is not None:
            tables = {"training": ticket.train, "held-out": ticket.evaluation, "replay": ticket.replay}
            tables["EWC"] = ticket.fisher
            found |= {f"{name} rows of {stage.id}": _content(rows) for name, rows in tables.items() if rows}
    return found


def _content(rows: Rows) -> str:
    return f"{rows.count:,} ({rows.sha256[:8]})"


def _training(stage: StageRecord) -> Training:
    outcome = stage.outcome
    assert outcome is not None
    span, held = curves.ends(curves.train_loss(stage)), curves.finite(curves.eval_loss(stage))
    kl = outcome.metrics.get("kl")
    return Training(
        steps=outcome.steps,
        batch=outcome.global_batch_size,
        rows=outcome.data.get("rows"),
        replay_rows=outcome.data.get("replay_rows"),
        trainable=outcome.parameters.get("trainable"),
        train_loss=number(span[1]) if span else None,
        eval_loss=number(held[-1][1]) if held else None,
        kl=number(kl) if isinstance(kl, int | float) else None,
        cpu_seconds=number(outcome.cpu_seconds),
        peak_memory_bytes=outcome.peak_memory_bytes,
        acted=(stage.decision.not_as_trained or None) if stage.decision else None,
    )
