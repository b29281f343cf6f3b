"""The Python stacks that processes write into their logs when they are asked with SIGQUIT."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

WAIT = 1.0  # seconds for a process to write its stack
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_COLLECTIVE = re.compile(r"/(torch/distributed|torch/nn/parallel|deepspeed)/")


@dataclass(frozen=True)
class Frame:
    """Where a thread is."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


def ask(logs: Mapping[int, Path], pids: Mapping[int, int]) -> dict[int, list[Frame]]:
    """Have processes write their stacks.

    Args:
        logs: of each rank; the stacks are added there.
        pids: of the ranks that can answer.

    Returns:
        the main thread's frames of those that did, the innermost first.
    """
    before = {rank: path.stat().st_size if path.is_file() else 0 for rank, path in logs.items()}
    for pid in pids.values():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGQUIT)
    found: dict[int, list[Frame]] = {}
    until = time.monotonic() + WAIT
    while len(found) < len(pids) and time.monotonic() < until:
        time.sleep(0.1)
        for rank in pids.keys() - found.keys():
            if frames := frames_in(_after(logs[rank], before[rank])):
                found[rank] = frames
    return found


def frames_in(text: str) -> list[Frame]:
    """The frames of the thread that took the signal, which is the main one, as faulthandler writes them."""
    _, marked, rest = text.partition("Current thread ")
    if not marked:
        return []
    block = rest.partition("\nThread ")[0].partition("\n\n")[0]
    return [Frame(file, int(line), function) for file, line, function in _FRAME.findall(block)]


def waits(frames: list[Frame]) -> bool:
    """Whether a process seems to wait for the others: in a collective call, or in a backward pass, which has some."""
    inner = frames[:4]
    return any(frame.function == "_engine_run_backward" or _COLLECTIVE.search(frame.file) for frame in inner)


def own(frames: list[Frame]) -> Frame | None:
    """The innermost frame outside Python's own library, which says most."""
    library = f"{os.sep}lib{os.sep}python"
    outside = [frame for frame in frames if library not in frame.file or "site-packages" in frame.file]
    return next(iter(outside or frames), None)


def _after(path: Path, size: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(size)
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
