"""The processes that a child consists of: which there are, in what state, and an end for all of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

ENDED = "XZ"  # states of a process that has ended


def state(pid: int) -> str | None:
    """What the system says of a process: `R`unning, `S`leeping, `D` waiting for a device, `T` stopped, `Z` ended and
    not fetched yet; None when it is gone. Where the system has no /proc, `S` for whatever is there."""
    if Path("/proc/self/stat").exists():
        found = _stat(pid)
        return found[0] if found else None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "S"


def computed(pid: int) -> float | None:
    """CPU seconds of a process; None where the system does not say."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def moved(pid: int) -> int:
    """Bytes that a process has read from disks and written to them; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.rpartition(":")[2]) for line in lines if line.startswith(("read_bytes:", "write_bytes:")))


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    return (state(pid) or "Z") in ENDED


def tree(roots: Iterable[int]) -> set[int]:
    """The processes below these, those of the sessions that they lead, and themselves."""
    found, known = set(roots), {pid: stat for pid in _pids() if (stat := _stat(pid))}
    while True:
        more = {
            pid
            for pid, (_, parent, session) in known.items()
            if pid not in found and (parent in found or session in found)
        }
        if not more:
            return {pid for pid in found if not is_gone(pid)}
        found |= more


def end(roots: Iterable[int], seconds: float = 5.0, fetch: Callable[[], object] = lambda: None) -> None:
    """Kill these processes and all that belong to them, and wait until they are gone.

    Args:
        fetch: fetches those that are children of this process: without /proc they look alive until then.
    """
    roots, until = set(roots), time.monotonic() + seconds
    while (left := tree(roots)) and time.monotonic() < until:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        roots |= left
        fetch()
        time.sleep(0.02)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent and session."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return words[0], int(words[1]), int(words[3])
