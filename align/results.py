"""The finished stages of a run, as chat and export find them. No torch."""

from __future__ import annotations

from pathlib import Path

from align import rundir
from align.errors import AlignError
from align.rundir import RunDir
from align.stage import Outcome, Ticket


def finished(folder: Path) -> dict[str, Outcome]:
    """The stages of a run that have a policy, in the order in which they ran.

    Raises:
        AlignError: the folder is no run, or no stage of it is done.
    """
    run = RunDir(folder)
    record = rundir.read_json(run.record)
    if record is None:
        raise AlignError(f"'{folder}' is no run folder", "give a folder that `align run` wrote")
    read = {id: rundir.read_json(run.stage(id).outcome) for id in record["order"]}
    found = {id: Outcome.model_validate(raw) for id, raw in read.items() if raw and raw.get("policy")}
    if not found:
        raise AlignError(f"no stage of '{folder}' is done", "run it first: align run")
    return found


def find(folder: Path, stage: str | None) -> tuple[Ticket, Outcome]:
    """A finished stage with what it was asked to do; the last one where none is named.

    Raises:
        AlignError: there is no such stage, or it is not done.
    """
    done = finished(folder)
    chosen = stage or list(done)[-1]
    if chosen not in done:
        raise AlignError(f"'{folder}' has no finished stage '{chosen}'", f"choose one of: {', '.join(done)}")
    return Ticket.model_validate(rundir.read_json(RunDir(folder).stage(chosen).ticket)), done[chosen]
