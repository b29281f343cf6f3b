"""Files of a run: written at once or not at all, and told apart by their hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.errors import AlignError

PART = ".aligning"  # ends the name of a file that is being written
NO_JSON = (ValueError, RecursionError)  # what is raised of text that is not JSON, or is nested or long beyond measure
_FOLDERS = ("base", "data", "launch", "stages")  # of a run


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
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


def sweep(root: Path) -> None:
    """Remove from a run folder what a process that was killed while it wrote has left. Nobody else may be writing."""
    for part in (*root.glob(f".*{PART}"), *(left for name in _FOLDERS for left in (root / name).rglob(f".*{PART}"))):
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` to write into, which becomes `path` at the end; after a failure nothing is left."""
    near = next(parent for parent in path.absolute().parents if parent.exists())
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


def link(source: Path, target: Path) -> None:
    """Have a file stand in another place too, whole or not at all: by a hard link, where there are such, else a copy.
    Files of a run are replaced, never written into, so that neither place changes with the other."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}{PART}")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        shutil.copyfile(source, part)
    part.replace(target)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    """Read JSON; `default` when the file is missing or torn, as if it had never been written."""
    try:
        with named(path):
            return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, *NO_JSON):
        return default


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Within, a disk that fails is told with the file that it fails at, which reading alone does not tell."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where the file is missing, torn or holds something else."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with named(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def artifacts(folder: Path, root: Path) -> dict[str, dict[str, Any]]:
    """Every file below `folder`, by its path relative to `root`: its hash and size."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in files}


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A record with a hash of itself under `seal`, so that a change of it is found."""
    return {**value, "seal": digest(value)}


def unsealed(value: Any) -> dict[str, Any] | None:
    """A record without its seal; None where it was changed. One that an older align wrote has none, and is believed."""
    if not isinstance(value, dict):
        return None
    own = {name: entry for name, entry in value.items() if name != "seal"}
    return own if value.get("seal") in (None, digest(own)) else None


def write_if_other(path: Path, text: str) -> None:
    """Write a file that does not say this already, byte for byte."""
    if not path.is_file() or path.read_bytes() != text.encode("utf-8"):
        write_text(path, text)


def move(path: Path, target: Path) -> None:
    """Move a file or a folder, also to another disk."""
    try:
        path.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.move(path, target)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, and not what that points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def damaged(recorded: dict[str, dict[str, Any]], root: Path) -> str | None:
    """The first recorded file that is not as recorded, by its size or its hash: a disk may alter what it holds, and not
    its time."""
    for name, record in recorded.items():
        path = root / name
        try:
            stat = path.stat()
        except OSError:
            return name
        if not (isinstance(record, dict) and {"bytes", "sha256"} <= record.keys()):
            return name
        if stat.st_size != record["bytes"]:
            return name
        if file_sha256(path) != record["sha256"]:
            return name
    return None
