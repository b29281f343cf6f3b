"""Fewer rows at a time for a stage whose memory has run out; its batch stays as large as it was."""

from __future__ import annotations

from typing import Any

from align.errors import OutOfMemory
from align.recipe import contradictions
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import files, reading
from align.run_folder.records import Record, Ticket
from align.run_folder.stage_dir import StageDir

ROWS, EVALUATED = "per_device_train_batch_size", "per_device_eval_batch_size"
DOUBLED = ("gradient_accumulation_steps", "steps_per_generation")  # the second where a stage samples answers
USUAL = 8  # rows at a time in an evaluation, where the recipe does not say
PLACES = {"evaluation": "in the evaluation after step {made}", "rollout": "in the rollout after step {made}"}


class Batch(Record):
    """batch.json: what is known to fit into the memory.

    Attributes:
        rows, evaluated: of a process at a time, at most; None where more were not too many yet.
        warnings: what was said when it was found.
    """

    rows: int | None = None
    evaluated: int | None = None
    warnings: tuple[str, ...] = ()


def fitting(here: StageDir, ticket: Ticket) -> Ticket:
    """A ticket as the recipe has it with as many rows at a time as are known to fit; itself where nothing is known."""
    known = reading.whole(here.batch, Batch)
    training = ticket.training
    while known and known.rows and training.get(ROWS, 0) > known.rows and (fewer := _halved(training)):
        training = fewer
    if known and known.evaluated and training.get(EVALUATED, USUAL) > known.evaluated:
        training = {**training, EVALUATED: known.evaluated}
    if known is None or training is ticket.training:
        return ticket
    new = [text for text in known.warnings if text not in ticket.warnings]
    parts = ticket.training.get(ROWS, 1) // training.get(ROWS, 1)
    changed = {"training": training, "parts": parts, "warnings": [*ticket.warnings, *new]}
    return ticket.model_copy(update=changed)


def halve(here: StageDir, ticket: Ticket, loaded: Loaded, plan: StagePlan, error: OutOfMemory) -> str | None:
    """Note that a ticket's rows at a time are too many, and return what to say of it.

    Returns:
        None where the stage cannot be trained with fewer, or where the recipe asks to stop.
    """
    if plan.keys.on_out_of_memory == "stop":
        return None
    place = PLACES.get(error.phase, "in step {next}").format(made=error.step, next=error.step + 1)
    known = reading.whole(here.batch, Batch) or Batch()
    if error.phase == "evaluation":
        had = ticket.training.get(EVALUATED, USUAL)
        if had < 2:
            return None
        text = f"out of memory {place} with {had} rows at a time; it goes on with `{EVALUATED}: {had // 2}`"
        found = known.but(evaluated=had // 2)
    else:
        fewer = _halved(ticket.training)
        if fewer is None or not contradictions.goes(loaded, plan, fewer):
            return None
        doubled = " and ".join(f"`{name}: {fewer[name]}`" for name in DOUBLED if name in fewer)
        same = fewer[ROWS] * fewer[DOUBLED[0]] * ticket.processes
        text = f"out of memory {place} with {ticket.training[ROWS]} rows at a time; it goes on with "
        text += f"`{ROWS}: {fewer[ROWS]}` and {doubled}, the same batch of {same}"
        found = known.but(rows=fewer[ROWS])
    found = found.but(warnings=(*known.warnings, text))
    files.write_json(here.batch, files.sealed(found.model_dump(mode="json")))
    return text


def _halved(training: dict[str, Any]) -> dict[str, Any] | None:
    """Training arguments with half as many rows at a time; None where these cannot be halved."""
    rows = training.get(ROWS)
    if not isinstance(rows, int) or rows < 2 or rows % 2:
        return None
    found = {**training, ROWS: rows // 2, DOUBLED[0]: training.get(DOUBLED[0], 1) * 2}
    if isinstance(training.get(DOUBLED[1]), int):
        found[DOUBLED[1]] = training[DOUBLED[1]] * 2
    return found
