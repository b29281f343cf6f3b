"""The paths of a run, what is replaced in it, and its lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from align.errors import AlignError
from align.run_folder import files
from align.run_folder.files import read_object, write_json
from align.run_folder.stage_dir import StageDir

REPLACED = ("recipe.yaml", "run.json", "base", "stages", "forgetting.json", "report.html", "report.md")


@dataclass(frozen=True)
class RunDir:
    """The paths of a run."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    @property
    def forgetting(self) -> Path:
        return self.root / "forgetting.json"

    @property
    def comparison(self) -> Path:
        """What the branches of a run score, side by side."""
        return self.root / "comparison.json"

    @property
    def base_measurements(self) -> Path:
        return self.root / "base" / "measurements"

    @property
    def base_answers(self) -> Path:
        """What the base answers to the prompts that every stage is asked."""
        return self.base_measurements / "answers.jsonl"

    @property
    def quantization(self) -> Path:
        """What quantising the base costs it, before anything is trained."""
        return self.base_measurements / "quantization.json"

    @property
    def battery_size(self) -> Path:
        """How many items of each skill are asked, where a run chose."""
        return self.base_measurements / "battery.json"

    @property
    def base_identity(self) -> Path:
        return self.root / "base" / "identity.json"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def queue(self) -> Path:
        return self.root / ".queue"

    def asked(self, number: int) -> Path:
        """What the parent asks of the child, one file each."""
        return self.queue / f"{number}.json"

    @property
    def launch(self) -> Path:
        """How each child was started: accelerate's configuration, and the line as a script."""
        return self.root / "launch"

    @property
    def stop(self) -> Path:
        """A file whose presence asks every process of the child to save and end."""
        return self.queue / "stop"

    @property
    def child_logs(self) -> list[Path]:
        """What the launchers of all machines have printed."""
        return [path for path in (self.child_log, *sorted(self.root.glob("child.machine*.log"))) if path.is_file()]

    def child_log_of(self, machine: int) -> Path:
        """What the processes of one of several machines print before they know their stage."""
        return self.child_log if machine == 0 else self.root / f"child.machine{machine}.log"

    @property
    def call(self) -> Path:
        """What the first of several machines wants of the others."""
        return self.machines / "call.json"

    def answer(self, machine: int) -> Path:
        """What another machine says to it."""
        return self.machines / f"{machine}.json"

    @property
    def machines(self) -> Path:
        """What the machines of a run tell each other."""
        return self.root / "machines"

    @property
    def heartbeats(self) -> Path:
        """A sign of life of each process of the child."""
        return self.queue / "heartbeats"

    def heartbeat(self, rank: int) -> Path:
        return self.heartbeats / f"{rank}.json"

    @property
    def child_log(self) -> Path:
        return self.root / "child.log"

    def stage(self, id: str) -> StageDir:
        return StageDir(self.root / "stages" / id)

    def stages_of(self, *paths: str) -> list[StageDir]:
        """The stages in whose folders these paths lie, which begin at the root; others are left out."""
        parts = [Path(path).parts for path in paths]
        return [self.stage(part[1]) for part in parts if part[:1] == ("stages",)]

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    @property
    def superseded(self) -> Path:
        """What was replaced, under names that say when."""
        return self.root / "superseded"

    def supersede(self, path: Path) -> None:
        """Move a part of the run to `superseded/`, under a name that says when; nothing is overwritten."""
        if not path.exists():
            return
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        target = self.superseded / f"{stamp}-{path.name}"
        target.parent.mkdir(exist_ok=True)
        files.move(path, target)

    def _refuse_another(self) -> None:
        """Raises AlignError where files that a run replaces or moves away are there, and none of a run."""
        if any(path.exists() for path in (self.record, self.root / ".holder", self.base_identity)):
            return
        there = next((name for name in (*REPLACED, "comparison.json") if (self.root / name).exists()), None)
        if there is not None:
            what = f"'{self.root}' has a '{there}' that is not of a run, and a run would replace it"
            raise AlignError(what, "give a --run-dir that is empty, or not there yet")

    def is_there(self) -> bool:
        """Whether the folder is the one that was locked: not one that was deleted since, or made anew."""
        return (self.root / ".lock").is_file()

    def is_held(self) -> bool:
        """Whether a process is at work on this run."""
        if not self.is_there() or (self.root / ".lock").is_symlink():
            return False
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            AlignError: another process holds it, or the folder is somebody's own.
        """
        self._refuse_another()
        if (self.root / ".lock").is_symlink() or (self.root / ".lock").is_dir():
            what = f"'{self.root / '.lock'}' is a folder or a link, not a file of align's"
            raise AlignError(what, "remove it, or give another --run-dir")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / ".lock").touch()
        except OSError as error:
            what = f"the run folder '{self.root}' cannot be written ({error.strerror})"
            raise AlignError(what, "give another --run-dir") from None
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = read_object(self.root / ".holder").get("pid")
            who = f"process {holder}" if holder else "another process"
            raise AlignError(
                f"the run folder '{self.root}' is in use by {who}", "wait for it to end, or give another --run-dir"
            ) from None
        try:
            write_json(self.root / ".holder", {"pid": os.getpid()})
            yield
        finally:
            lock.release()
