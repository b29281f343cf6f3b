"""Stages that were moved to `superseded/` because another policy came in, and that come back when the first one does.

What a user wanted trained anew carries no mark, and never comes back.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from align.run_folder import attempts, files, reading
from align.run_folder.paths import RunDir
from align.run_folder.stage_dir import StageDir


class Aside(BaseModel):
    """aside.json, in the folder of a stage that is moved away."""

    stage: str


def put(run: RunDir, id: str) -> None:
    """Move a stage away, to come back when what it was trained from does."""
    here = run.stage(id)
    files.write_json(here.aside, Aside(stage=id).model_dump())
    run.supersede(here.root)


def bring_back(run: RunDir, id: str, fingerprint: str) -> bool:
    """Put the stage of that fingerprint back, where it was whole and each file is as it was written; whether there is
    one. Nothing stands in the folder of the stage."""
    for there in _marked(run, id):
        outcome = reading.outcome(there)
        if outcome is None or attempts.fingerprint(there) != fingerprint:
            continue
        if files.damaged(outcome.artifacts, there.root) is None:
            files.move(there.root, run.stage(id).root)
            run.stage(id).aside.unlink(missing_ok=True)
            return True
    return False


def leave(run: RunDir, id: str) -> None:
    """Let no result of a stage come back, of those that are there now."""
    for there in (run.stage(id), *_marked(run, id)):
        there.aside.unlink(missing_ok=True)


def _marked(run: RunDir, id: str) -> Iterator[StageDir]:
    """The last one first."""
    for path in sorted(run.superseded.glob(f"*-{id}"), reverse=True):
        if files.read_object(StageDir(path).aside).get("stage") == id:
            yield StageDir(path)
