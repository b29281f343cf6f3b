"""Fewer rows at a time for a stage whose memory has run out; its batch stays as large as it was."""

from __future__ import annotations

from typing import Any

from align.recipe import contradictions
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import files, reading
from align.run_folder.records import Record, Ticket
from align.run_folder.stage_dir import StageDir

SIZES = ("per_device_train_batch_size", "per_device_eval_batch_size")
ROW = SIZES[0]
DOUBLED = ("gradient_accumulation_steps", "steps_per_generation")  # the second where a stage samples answers


class Batch(Record):
    """batch.json: what is known to fit into the memory.

    Attributes:
        rows: of a process at a time, at most.
        warnings: what was said when it was found.
    """

    rows: int
    warnings: tuple[str, ...] = ()


def fitting(here: StageDir, ticket: Ticket) -> Ticket:
    """The ticket with as many rows at a time as are known to fit; itself where nothing is known."""
    known = reading.whole(here.batch, Batch)
    training = ticket.training
    while known is not None and training.get(ROW, 0) > known.rows and (fewer := _halved(training)):
        training = fewer
    if known is None or training is ticket.training:
        return ticket
    new = [text for text in known.warnings if text not in ticket.warnings]
    parts = ticket.training[ROW] // training[ROW]
    changed = {"training": training, "parts": parts, "warnings": [*ticket.warnings, *new]}
    return ticket.model_copy(update=changed)


def halve(here: StageDir, ticket: Ticket, loaded: Loaded, plan: StagePlan, step: int) -> str | None:
    """Note that a ticket's rows at a time are too many, and return what to say of it.

    Args:
        step: that the memory ran out in.

    Returns:
        None where the stage cannot be trained with fewer, or where the recipe asks to stop.
    """
    fewer = _halved(ticket.training)
    if fewer is None or plan.keys.on_out_of_memory == "stop" or not contradictions.goes(loaded, plan, fewer):
        return None
    had, has = ticket.training[ROW], fewer[ROW]
    doubled = " and ".join(f"`{name}: {fewer[name]}`" for name in DOUBLED if name in fewer)
    same = fewer[ROW] * fewer[DOUBLED[0]] * ticket.processes
    text = f"out of memory in step {step} with {had} rows at a time; it goes on with `{ROW}: {has}` and {doubled}"
    text += f", the same batch of {same}"
    known = reading.whole(here.batch, Batch)
    said = (*(known.warnings if known else ()), text)
    files.write_json(here.batch, files.sealed(Batch(rows=has, warnings=said).written()))
    return text


def _halved(training: dict[str, Any]) -> dict[str, Any] | None:
    """Training arguments with half as many rows at a time; None where these cannot be halved."""
    rows = training.get(ROW)
    if not isinstance(rows, int) or rows < 2 or rows % 2:
        return None
    found = {**training, ROW: rows // 2, DOUBLED[0]: training.get(DOUBLED[0], 1) * 2}
    if isinstance(training.get(DOUBLED[1]), int):
        found[DOUBLED[1]] = training[DOUBLED[1]] * 2
    evaluated = training.get(SIZES[1])
    if isinstance(evaluated, int):
        found[SIZES[1]] = max(1, evaluated // 2)
    return found
