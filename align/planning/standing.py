"""What a run folder holds of each stage, and what `align run` would do with it. No torch."""

from __future__ import annotations

from pathlib import Path

from align.errors import AlignError
from align.planning.records import Standing
from align.preflight.check import Prepared
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import attempts, checkpoints, files, reading
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity
from align.runner import tickets


def of(loaded: Loaded, prepared: Prepared, run: RunDir, rows: RunDir) -> dict[str, Standing]:
    """By stage, in order.

    Args:
        rows: a folder in which the tables of today's recipe may be written.
    """
    if not run.record.is_file():
        return {plan.id: Standing(action="run", why="nothing is there yet") for plan in loaded.stages}
    base = prepared.base
    assert base.path is not None
    identity = BaseModelIdentity(
        name=base.name, path=str(base.path), revision=base.revision, identity=base.identity(run.base_identity)
    )
    made = {plan.id: tickets.ticket_of(loaded, prepared, plan, rows, identity) for plan in loaded.stages}
    found: dict[str, Standing] = {}
    for plan in loaded.stages:
        tickets.seal(plan, loaded, made, run)
        again = [id for id in plan.inputs if id in found and found[id].action != "skip"]
        found[plan.id] = _one(plan, made[plan.id].fingerprint, run, again)
    return found


def _one(plan: StagePlan, fingerprint: str, run: RunDir, again: list[str]) -> Standing:
    here = run.stage(plan.id)
    try:
        outcome = reading.outcome(here)
    except AlignError:
        return Standing(action="run", why="its outcome.json is damaged")
    known = attempts.fingerprint(here)
    if outcome is not None and fingerprint == known:
        return Standing(action="skip", why="done already", peak=outcome.peak_memory_bytes)
    if outcome is None and not here.root.exists():
        return Standing(action="run", why=f"'{again[0]}' comes first" if again else "nothing is there yet")
    if known != fingerprint:
        why = f"what it starts from, '{again[0]}', is made again" if again else "its recipe changed"
        return Standing(action="run", why=f"{why}; the old one is kept in superseded/")
    last = next((one for one in checkpoints.latest_first(here.checkpoints) if _sealed(one)), None)
    if last is None:
        return Standing(action="run", why="it was begun, and has no checkpoint yet")
    return Standing(action="resume", why=f"from {last.name}")


def _sealed(checkpoint: Path) -> bool:
    return bool(files.read_json(checkpoint / checkpoints.COMPLETE))
