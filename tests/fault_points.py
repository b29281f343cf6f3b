"""Every file operation below a folder as a numbered point at which a process can be killed or an operation can fail.

In the manner of SQLite's tests: the operations of an undisturbed run are counted, and then the run is made again as
many times, with a fault at the first, the second and so on. Python tells of each operation before it is made (audit
events, PEP 578), but for a flush to disk: `os.fsync` is wrapped.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}


@dataclass
class Points:
    """Counts the operations below a folder, and makes one of them, or all from one on, go wrong.

    Attributes:
        at: the number of the first operation that goes wrong, from 1; 0 for none.
        errno: of the error; 0 kills the process instead.
        once: whether the operations after it succeed.
        seen: what they were.
    """

    folder: Path
    at: int = 0
    errno: int = 0
    once: bool = True
    seen: list[str] = field(default_factory=list)
    fsync: Callable[[int], None] = os.fsync

    def install(self) -> None:
        """For the rest of this process: an audit hook cannot be taken away."""
        sys.addaudithook(self._heard)

        def flushed(descriptor: int) -> None:
            self._reached("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            self.fsync(descriptor)

        os.fsync = flushed

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, str | os.PathLike) and flags & WRITING:
                self._reached(event, os.fspath(path))
        elif event in EVENTS and isinstance(args[0], str | os.PathLike):
            self._reached(event, os.fspath(args[0]))

    def _reached(self, what: str, path: str) -> None:
        inside = path.startswith(str(self.folder)) or not path.startswith("/")  # a name beside a folder's descriptor
        if not inside:
            return
        self.seen.append(f"{what} {path.removeprefix(str(self.folder))}")
        here = len(self.seen)
        if not self.at or here < self.at or (self.once and here > self.at):
            return
        if not self.errno:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.errno, os.strerror(self.errno), path)


@dataclass
class Ended:
    """How a process ended: with a result, an error or a signal."""

    result: Any = None
    error: str = ""
    error_itself: BaseException | None = None  # where it is the machine's
    kind: str = ""
    trace: str = ""
    signal: int = 0
    seen: list[str] = field(default_factory=list)


def apart(work: Callable[[], Any], points: Points) -> Ended:
    """Do something in a process of its own, forked from this one, with faults in its file operations."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        ended = Ended()
        points.install()
        try:
            ended.result = work()
        except BaseException as error:
            ended.error, ended.kind, ended.trace = str(error), type(error).__name__, traceback.format_exc()
            ended.error_itself = error if isinstance(error, OSError) else None
        points.at = 0
        ended.seen = points.seen
        with os.fdopen(writing, "wb") as file:
            pickle.dump(ended, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        told = file.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Ended(signal=os.WTERMSIG(status))
    found: Ended = pickle.loads(told)  # of our own child
    return found
