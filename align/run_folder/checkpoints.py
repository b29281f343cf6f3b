"""Checkpoints: a mark written last says that one is complete."""

from __future__ import annotations

from pathlib import Path

from align.run_folder.files import artifacts, damaged, read_json, remove, sealed, unsealed, write_json

COMPLETE = "complete.json"  # written into a checkpoint after everything else of it


def seal(checkpoint: Path) -> None:
    """Say that a checkpoint is whole: names, sizes and hashes of its files, written last."""
    write_json(checkpoint / COMPLETE, sealed({"files": artifacts(checkpoint, checkpoint)}))


def whole_checkpoint(checkpoints: Path) -> Path | None:
    """The last whole checkpoint; torn and altered ones after it are removed."""
    for path in latest_first(checkpoints):
        if _is_whole(path):
            return path
        remove(path)
    return None


def latest_first(checkpoints: Path) -> list[Path]:
    """All checkpoints, whole or not."""
    found = [path for path in checkpoints.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def _is_whole(checkpoint: Path) -> bool:
    """Whether all its files are as they were when they were written."""
    if not checkpoint.is_dir():
        return False
    recorded = (unsealed(read_json(checkpoint / COMPLETE)) or {}).get("files")
    if not recorded or not isinstance(recorded, dict):
        return False
    return damaged(recorded, checkpoint) is None
