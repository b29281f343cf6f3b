"""Which attempt at a stage stands in its folder, and where the others are kept.

One attempt stands in `stages/ID`, as a stage that is trained once does; the others in `stages/ID/attempts/N`. What is
to be moved is written down first, so that a run that is killed on the way goes on with it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.stage_dir import StageDir


class Moving(BaseModel):
    """moving.json: names below `attempts`.

    Attributes:
        aside: where what stands in the stage's folder goes; None once that is done.
        back: what then comes to stand there.
    """

    aside: str | None = None
    back: str | None = None


def standing(stage: StageDir) -> int | None:
    """The number of the attempt in the stage's folder; None where there is none."""
    ticket = files.read_object(stage.ticket)
    return int(ticket.get("attempt", 1)) if ticket else None


def fingerprint(stage: StageDir) -> str | None:
    """That of the first attempt, which says what all of them are trained from; None where it has not begun."""
    first = stage if standing(stage) == 1 else stage.attempt(1)
    return files.read_object(first.ticket).get("fingerprint")


def place(stage: StageDir, number: int) -> None:
    """Have an attempt stand in the stage's folder, empty where it has not begun; what stands there is put aside."""
    finish(stage)
    there = standing(stage)
    if there != number:
        back = str(number) if stage.attempt(number).root.is_dir() else None
        _begin(stage, Moving(aside=None if there is None else str(there), back=back))


def put_aside(stage: StageDir, number: int) -> None:
    """Move an attempt out of the stage's folder, if it stands there."""
    finish(stage)
    if standing(stage) == number:
        _begin(stage, Moving(aside=str(number)))


def supersede(run: RunDir, stage: StageDir) -> None:
    """Move what stands in the stage's folder to `superseded/`; other attempts stay."""
    if not stage.attempts.is_dir():
        run.supersede(stage.root)
        return
    name = f"{stage.root.name}-attempt-{standing(stage)}"
    run.supersede(stage.attempts / name)  # of a run that was killed just here
    _begin(stage, Moving(aside=name))
    run.supersede(stage.attempts / name)


def inherit(stage: StageDir) -> None:
    """Give the attempt in the stage's folder what another has made before it trained and it has not: what its policy
    wrote, and the Fisher information. Each file comes before the record that vouches for it by hash, and who reads it
    looks at both."""
    others = sorted(stage.attempts.glob("[0-9]*")) if stage.attempts.is_dir() else []
    for other in map(StageDir, others):
        records = [*sorted(other.written.glob("*.json")), other.fisher_record]
        for record in (path for path in records if path.is_file()):
            target = stage.root / record.relative_to(other.root)
            if target.is_file():
                continue
            beside = {*record.parent.glob(f"{record.stem}[._]*")} - {record, record.with_suffix(".part")}
            for file in (*sorted(beside), record):
                files.link(file, stage.root / file.relative_to(other.root))


def finish(stage: StageDir) -> None:
    """Finish what a killed run was moving."""
    found = files.read_json(stage.moving)
    if found is not None:
        _move(stage, Moving.model_validate(found))


def _begin(stage: StageDir, moving: Moving) -> None:
    stage.decision.unlink(missing_ok=True)  # it speaks of what stands here now
    files.write_json(stage.moving, moving.model_dump())
    _move(stage, moving)


def _move(stage: StageDir, moving: Moving) -> None:
    if moving.aside is not None:
        to = stage.attempts / moving.aside
        to.mkdir(parents=True, exist_ok=True)
        _entries(stage.root, to, but=(stage.attempts, stage.moving, stage.decision, stage.batch))
        files.write_json(stage.moving, Moving(back=moving.back).model_dump())
    if moving.back is not None:
        kept = StageDir(stage.attempts / moving.back)
        if kept.root.is_dir():
            kept.decision.unlink(missing_ok=True)  # the stage's own decision speaks of it from here on
            _entries(kept.root, stage.root, but=())
            kept.root.rmdir()
    stage.moving.unlink(missing_ok=True)


def _entries(source: Path, target: Path, but: tuple[Path, ...]) -> None:
    for entry in sorted(source.iterdir()):
        if entry not in but:
            files.move(entry, target / entry.name)
