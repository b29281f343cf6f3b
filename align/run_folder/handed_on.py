"""What goes on from the stages of a run, as their decisions say: which policy, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from align.run_folder import files, reading
from align.run_folder.decisions import INTERPOLATED, ROLLED_BACK
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy, Ticket
from align.run_folder.stage_dir import StageDir

BASE: Final = "base"


def undecided(stage: StageDir) -> bool:
    """Whether a stage is measured and it is not known what goes on from it: it is being decided on, or was when the run
    was killed."""
    return (stage.measurements / "summary.json").is_file() and not stage.decision.is_file()


def rolled_back(stage: StageDir) -> bool:
    """Whether the policy before the stage goes on."""
    return reading.goes_on(stage) == ROLLED_BACK


def folder(stage: StageDir) -> StageDir:
    """Where the model and the measurements of a stage's policy are: its own folder, or that of an interpolated one."""
    return stage.decided if reading.goes_on(stage).startswith(INTERPOLATED) else stage


def policy(run: RunDir, stage: str) -> Policy | None:
    """The policy that goes on from a stage; None of one that is not done or hands on none."""
    here = run.stage(stage)
    outcome = reading.outcome(folder(here))
    if outcome is None or outcome.policy is None or not rolled_back(here):
        return outcome.policy if outcome else None
    return Ticket.model_validate(files.read_json(here.ticket)).policy


def source(run: RunDir, stage: str, parents: Mapping[str, str]) -> str:
    """The stage whose policy goes on from a stage: itself, or where it was rolled back one before it, or `base`.

    Args:
        parents: the stage, or `base`, whose policy each stage takes.
    """
    while stage != BASE and rolled_back(run.stage(stage)):
        stage = parents[stage]
    return stage
