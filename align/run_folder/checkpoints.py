"""Checkpoints: a mark written last says that one is complete."""

from __future__ import annotations

import shutil
from pathlib import Path

from align.run_folder.files import artifacts, damaged, read_json, write_json

COMPLETE = "complete.json"  # written into a checkpoint after everything else of it


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
