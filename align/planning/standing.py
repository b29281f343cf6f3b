"""What a run folder holds of each stage, and what `align run` would do with it. No torch."""

from __future__ import annotations

from pathlib import Path

from align.errors import AlignError
from align.planning.records import Standing
from align.preflight.check import Prepared
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import attempts, checkpoints, files, reading
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Outcome, Ticket
from align.run_folder.run_record import RunRecord
from align.runner import tickets


def commit(loaded: Loaded, run: RunDir) -> str | None:
    """Of a model of the Hub that the run was begun with."""
    record, model = reading.whole(run.record, RunRecord), loaded.recipe.model
    pinned = record.hub if record else None
    return pinned.commit if pinned and pinned.base == (model.base, model.revision) else None


def of(loaded: Loaded, prepared: Prepared, run: RunDir, rows: RunDir) -> dict[str, Standing]:
    """By stage, in order.

    Args:
        rows: a folder in which the tables of today's recipe may be written.

    Raises:
        AlignError: the run is of another recipe.
    """
    if not run.record.is_file():
        return {plan.id: Standing(action="run", why="nothing is there yet") for plan in loaded.stages}
    record = reading.whole(run.record, RunRecord)
    if record is not None and record.name != loaded.recipe.name:
        what = f"the run folder '{run.root}' belongs to the recipe '{record.name}', not '{loaded.recipe.name}'"
        raise AlignError(what, "give another --run-dir, or name the recipe as before")
    base = prepared.base
    assert base.path is not None
    if run.base_identity.is_file():  # the hashes of the base's files, which are looked up and may be written again
        files.write_text(rows.base_identity, run.base_identity.read_text(encoding="utf-8", errors="replace"))
    identity = BaseModelIdentity(
        name=base.name, path=str(base.path), revision=base.revision, identity=base.identity(rows.base_identity)
    )
    made = {plan.id: tickets.ticket_of(loaded, prepared, plan, rows, identity) for plan in loaded.stages}
    found: dict[str, Standing] = {}
    for plan in loaded.stages:
        tickets.seal(plan, loaded, made, run)
        again = [id for id in plan.inputs if id in found and found[id].action != "skip"]
        found[plan.id] = _one(plan, made[plan.id], run, again)
    return found


def _one(plan: StagePlan, ticket: Ticket, run: RunDir, again: list[str]) -> Standing:
    here = run.stage(plan.id)
    outcome = reading.outcome(here)
    if outcome is None and here.outcome.is_file():
        return Standing(action="run", why="its outcome.json is damaged, or of another version of align")
    remeasured = outcome is None
    outcome = outcome or reading.outcome_in(here.remeasuring)
    known = attempts.fingerprint(here)
    if outcome is None and not here.root.exists():
        return Standing(action="run", why=f"'{again[0]}' comes first" if again else "nothing is there yet")
    if known != ticket.fingerprint:
        why = f"what it starts from, '{again[0]}', is made again" if again else "its recipe changed"
        return Standing(action="run", why=f"{why}; the old one is kept in superseded/")
    if outcome is not None:
        return _done(outcome, ticket, run, plan.id, remeasured=remeasured)
    last = next((one for one in checkpoints.latest_first(here.checkpoints) if _is_sealed(one)), None)
    if last is None:
        return Standing(action="run", why="it was begun, and has no checkpoint yet")
    return Standing(action="resume", why=f"from {last.name}")


def _done(outcome: Outcome, ticket: Ticket, run: RunDir, id: str, *, remeasured: bool) -> Standing:
    """A stage that is trained. Its files are looked at, and not hashed: that is for the run."""
    root = run.stage(id).root
    for name, known in outcome.artifacts.items():
        path = root / name
        if not path.is_file() or path.stat().st_size != known.get("bytes"):
            return Standing(action="run", why=f"a file of its result is missing or cut, {name}")
    measured = outcome.probes_sha256 == ticket.probes_sha256 and not remeasured
    why = "done already" if measured else "trained already; measured again"
    return Standing(action="skip", why=why, peak=outcome.peak_memory_bytes)


def _is_sealed(checkpoint: Path) -> bool:
    return files.unsealed(files.read_json(checkpoint / checkpoints.COMPLETE)) is not None
