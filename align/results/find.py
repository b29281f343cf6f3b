"""The finished stages of a run, as chat and export find them. No torch."""

from __future__ import annotations

from pathlib import Path

from align.errors import AlignError
from align.run_folder import files, handed_on, reading
from align.run_folder.paths import RunDir
from align.run_folder.records import Outcome, Policy, Ticket
from align.run_folder.run_record import RunRecord


def finished(folder: Path, *, rewards: bool = False) -> dict[str, Outcome]:
    """The stages of a run that gave a policy, in the order in which they ran; without those that were rolled back.

    Of one whose update was interpolated it is the outcome of what goes on.

    Args:
        rewards: those that gave a reward model too.

    Raises:
        AlignError: the folder is no run, or no stage of it is done.
    """
    done = _done(folder)
    run = RunDir(folder)
    found = {
        id: outcome
        for id, outcome in done.items()
        if (outcome.policy and not handed_on.rolled_back(run.stage(id))) or (rewards and outcome.reward)
    }
    if not found:
        if any(outcome.policy for outcome in done.values()):
            base = next(outcome.policy.base.name for outcome in done.values() if outcome.policy)
            what = f"'{folder}' hands on no policy: all that it trained was rolled back to its base, {base}"
            raise AlignError(what, "loosen the limits of its recipe, or change what it trains, and run it again")
        if done:
            raise _no_policy(folder, next(iter(done)), {})
        raise AlignError(f"no stage of '{folder}' has finished", "run it first: align run")
    return found


def find(folder: Path, stage: str | None, *, rewards: bool = False) -> tuple[Ticket, Outcome]:
    """A finished stage with what it was asked to do; where none is named the last one that gave a policy.

    Args:
        rewards: one that gave a reward model may be named too.

    Raises:
        AlignError: there is no such stage, or it is not done.
    """
    done = finished(folder, rewards=rewards)
    chosen = stage or [id for id, outcome in done.items() if outcome.policy or not _any_policy(done)][-1]
    if chosen not in done:
        if chosen in _done(folder) and handed_on.rolled_back(RunDir(folder).stage(chosen)):
            what = f"stage '{chosen}' of '{folder}' was rolled back, so its policy does not go on"
            raise AlignError(what, f"choose one of: {', '.join(done)}")
        if chosen in _done(folder):
            raise _no_policy(folder, chosen, done)
        raise AlignError(f"'{folder}' has no finished stage '{chosen}'", f"choose one of: {', '.join(done)}")
    _check_beneath(RunDir(folder), chosen, model(done[chosen]))
    return Ticket.model_validate(files.read_json(RunDir(folder).stage(chosen).ticket)), done[chosen]


def _check_beneath(run: RunDir, stage: str, policy: Policy) -> None:
    """Raises AlignError where a policy stands on that of a stage that is being decided on, whose files may be those of
    another attempt by now, or where a file of a model is not as it was written."""
    paths = [adapter.path for adapter in policy.adapters] + ([policy.weights] if policy.weights else [])
    for below in run.stages_of(*paths):
        if below.root.name != stage and handed_on.undecided(below):
            what = f"stage '{stage}' of '{run.root}' stands on '{below.root.name}', of which it is not decided yet what"
            raise AlignError(f"{what} goes on", "let the run end: align run")
        source = handed_on.folder(below)
        outcome = reading.outcome(source)
        if outcome is None:
            what = f"the record of stage '{below.root.name}' is damaged or missing: {source.outcome}"
            raise AlignError(what, "run the recipe again")
        written = {name: one for name, one in outcome.artifacts.items() if name.startswith("model/")}
        torn = files.damaged(written, source.root)
        if torn is not None:
            what = f"a file of stage '{below.root.name}' is damaged: {source.root / torn}"
            raise AlignError(what, "run the recipe again: the stage is trained again, or copy the file again")


def model(outcome: Outcome) -> Policy:
    """What a stage gave: its policy or its reward model."""
    found = outcome.policy or outcome.reward
    assert found is not None
    return found


def _done(folder: Path) -> dict[str, Outcome]:
    run = RunDir(folder)
    record = reading.sound(run.record, RunRecord, reading.OTHER)
    if record is None:
        raise AlignError(f"'{folder}' is not a run folder", "give a folder that `align run` wrote")
    read = {id: reading.outcome(handed_on.folder(run.stage(id))) for id in record.order}
    return {id: outcome for id, outcome in read.items() if outcome and (outcome.policy or outcome.reward)}


def _any_policy(done: dict[str, Outcome]) -> bool:
    return any(outcome.policy for outcome in done.values())


def _no_policy(folder: Path, stage: str, others: dict[str, Outcome]) -> AlignError:
    what = f"stage '{stage}' of '{folder}' trained a reward model, which scores answers but cannot write them"
    talkers = f"choose one of: {', '.join(others)}; or " if others else ""
    return AlignError(what, f"{talkers}export it: align export {folder} FOLDER --stage {stage}")
