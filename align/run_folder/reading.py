"""What a stage left in its folder: what it did, and what goes on from it."""

from __future__ import annotations

from pathlib import Path

from align.run_folder import files
from align.run_folder.paths import StageDir
from align.run_folder.records import Outcome


def outcome(stage: StageDir) -> Outcome | None:
    """What a stage did; None where it is not done, or its record is torn."""
    return outcome_in(stage.outcome)


def outcome_in(path: Path) -> Outcome | None:
    """The outcome in a file; None where there is none, or where it is torn."""
    raw = files.read_json(path)
    return None if raw is None else Outcome.model_validate(raw)


def goes_on(stage: StageDir) -> str:
    """Which policy goes on from a stage: `as_trained`, unless its decision says otherwise."""
    return str(files.read_json(stage.decision, {}).get("policy", "as_trained"))
