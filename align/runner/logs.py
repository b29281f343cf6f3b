"""Keeps the log of a stage from filling the disk: what a loop prints is of no use a million times."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LARGEST = 64 * 2**20  # bytes of a log
KEPT = 2**20  # bytes of its beginning and of its end that stay when it is larger


def cut(log: Path) -> None:
    """Take the middle out of a log that has become too large. Whoever writes it appends, and goes on behind what is
    left."""
    with suppress(OSError):  # it is not there yet, or the folder is gone, which is told elsewhere
        size = log.stat().st_size
        if size <= LARGEST:
            return
        with log.open("rb") as file:
            file.seek(size - KEPT)
            end = file.read()
        os.truncate(log, KEPT)
        with log.open("ab") as file:
            file.write(f"\n[align left {(size - 2 * KEPT) / 1e6:,.0f} MB of this log out]\n".encode() + end)
