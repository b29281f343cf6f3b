"""The run folder: the only file that knows its paths. Atomic writes, hashes, and the lock."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from align.errors import AlignError

COMPLETE = "complete.json"  # written into a checkpoint after everything else of it


@dataclass(frozen=True)
class StageDir:
    """The paths of one stage."""

    root: Path

    @property
    def ticket(self) -> Path:
        return self.root / "ticket.json"

    @property
    def outcome(self) -> Path:
        return self.root / "outcome.json"

    @property
    def trained(self) -> Path:
        """The outcome of a stage that is measured again, until that is done."""
        return self.root / "trained.json"

    @property
    def decision(self) -> Path:
        return self.root / "decision.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def error(self) -> Path:
        return self.root / "error.json"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def progress(self) -> Path:
        """What a stage is at before it trains, and its warnings as they come up."""
        return self.root / "progress.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def measurements(self) -> Path:
        return self.root / "measurements"

    @property
    def tokens(self) -> Path:
        """The rows as the trainer takes them, while the stage is at work."""
        return self.root / "tokens"

    @property
    def spectrum(self) -> Path:
        """What `method: spectrum` measured and chose."""
        return self.root / "spectrum.json"

    @property
    def precision(self) -> Path:
        """What a stage computes in where its recipe leaves that to the machine it began on."""
        return self.root / "precision.json"

    @property
    def reference(self) -> Path:
        return self.root / "reference.safetensors"

    @property
    def rollouts(self) -> Path:
        """What a stage that learns from rewards knows of each rollout."""
        return self.root / "rollouts.jsonl"

    @property
    def critic(self) -> Path:
        """The value network of PPO, kept beside the policy."""
        return self.root / "critic"


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
    def quantization(self) -> Path:
        """What quantising the base costs it, before anything is trained."""
        return self.base_measurements / "quantization.json"

    @property
    def base_identity(self) -> Path:
        return self.root / "base" / "identity.json"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def queue(self) -> Path:
        return self.root / ".queue"

    @property
    def stop(self) -> Path:
        """A file whose presence asks every process of the child to save and end."""
        return self.queue / "stop"

    @property
    def child_log(self) -> Path:
        return self.root / "child.log"

    def stage(self, id: str) -> StageDir:
        return StageDir(self.root / "stages" / id)

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def supersede(self, path: Path) -> None:
        """Move a part of the run to `superseded/`, under a name that says when; nothing is overwritten."""
        if not path.exists():
            return
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        target = self.root / "superseded" / f"{stamp}-{path.name}"
        target.parent.mkdir(exist_ok=True)
        path.replace(target)

    def is_held(self) -> bool:
        """Whether a process is at work on this run."""
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
            AlignError: another process holds it.
        """
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
            holder = read_json(self.root / ".holder", {}).get("pid")
            who = f"process {holder}" if holder else "another process"
            raise AlignError(
                f"the run folder '{self.root}' is in use by {who}", "wait for it to end, or give another --run-dir"
            ) from None
        try:
            write_json(self.root / ".holder", {"pid": os.getpid()})
            yield
        finally:
            lock.release()


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` to write into, which becomes `path` at the end; after a failure nothing is left."""
    near = next(parent for parent in path.absolute().parents if parent.is_dir())
    try:
        beside = tempfile.TemporaryDirectory(dir=near, prefix=".writing-")
    except OSError as error:
        raise AlignError(f"'{path}' cannot be written: {error.strerror}", "give another folder") from None
    with beside:
        made = Path(beside.name) / path.name
        made.mkdir()
        made.chmod(0o755)
        yield made
        path.parent.mkdir(parents=True, exist_ok=True)
        made.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    """Read JSON; `default` when the file is missing or torn, as if it had never been written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return default


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def artifacts(folder: Path, root: Path) -> dict[str, dict[str, Any]]:
    """Every file below `folder`, by its path relative to `root`: its hash and size."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in files}


def damaged(recorded: dict[str, dict[str, Any]], root: Path, since: float) -> str | None:
    """The first recorded file that is not as recorded. Cheapest test first.

    A file of the recorded size that was not changed after `since` (seconds, as `st_mtime`) is believed;
    others are hashed.
    """
    for name, record in recorded.items():
        path = root / name
        try:
            stat = path.stat()
        except OSError:
            return name
        if stat.st_size != record["bytes"]:
            return name
        if stat.st_mtime > since and file_sha256(path) != record["sha256"]:
            return name
    return None


def seal(checkpoint: Path) -> None:
    """Say that a checkpoint is whole: names, sizes and hashes of its files, written last."""
    write_json(checkpoint / COMPLETE, {"files": artifacts(checkpoint, checkpoint)})


def whole_checkpoint(checkpoints: Path) -> Path | None:
    """The last whole checkpoint; torn ones after it are removed."""
    found = [p for p in checkpoints.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
        record = read_json(path / COMPLETE)
        if record is not None and damaged(record["files"], path, since=0.0) is None:
            return path
        shutil.rmtree(path)
    return None
