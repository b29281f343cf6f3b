"""A sign of life of each process of the child: what it is at, since when; one small file each, written over in place.

It is written by the thread that trains, at the boundaries of steps and of batches: whoever hangs does not write.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from align.run_folder.paths import RunDir
from align.run_folder.records import Record

SECONDS = 1.0  # at least, between two signs of the same phase
STEP_SECONDS = 0.1  # and of another step, so that the step that is named is the one that hangs
BYTES = 1024  # of a file: each sign writes over the whole of the one before

Phase = Literal["waiting", "start-up", "step", "rollout", "evaluation", "measuring", "saving", "harness", "closing"]


class Beat(Record):
    """heartbeats/N.json.

    Attributes:
        rank, world: which process of how many.
        machine: that it is on, by its number.
        count: of those that were written, so that no two are the same.
        signs: of life since the process began, written or not.
        phase: `waiting` for a ticket; `start-up` until training begins; `closing` once it has ended; `harness` while a
            task of the language model evaluation harness runs, which tells nothing of its progress.
        step: the last one that was made.
        seconds: on the process's own monotonic clock.
        passed: phases of this stage that were gone through, with the longest seconds between two signs in each:
            who reads now and then does not see a short one.
        left: the exit code that it has left with.
    """

    rank: int
    world: int = 1
    pid: int
    machine: int = 0
    host: str = ""
    count: int = 0
    signs: int = 0
    phase: Phase = "start-up"
    stage: str = ""
    step: int = 0
    seconds: float = 0.0
    passed: dict[Phase, float] = Field(default_factory=dict)
    left: int | None = None


class Heart:
    """Writes the signs of one process."""

    def __init__(self, path: Path, rank: int, world: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.written, self.signs, self.made = clock, 0.0, 0, 0
        self.last, self.longest = clock(), 0.0  # sign, and time between two in this phase
        machine = int(os.environ.get("GROUP_RANK", "0"))  # torch's name for it
        told = {"pid": os.getpid(), "machine": machine, "host": socket.gethostname()}
        self.now = Beat(rank=rank, world=world, phase="waiting", **told)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._write()

    def beat(self, phase: Phase | None = None, *, step: int | None = None, stage: str | None = None) -> None:
        """Tell of life; another phase or stage at once, another step ten times a second at most, the same one once."""
        now = self.clock()
        self.signs, self.last, self.longest = self.signs + 1, now, max(self.longest, now - self.last)
        self.made = self.made if step is None else step
        phase = phase or self.now.phase
        same = phase == self.now.phase and stage in (None, self.now.stage)
        pace = SECONDS if step in (None, self.now.step) else STEP_SECONDS
        if same and now - self.written < pace:
            return
        given = {
            "phase": phase,
            "step": step,
            "stage": stage,
            "passed": self.now.passed if same else self._passed(stage),
        }
        self.now = self.now.model_copy(update={name: value for name, value in given.items() if value is not None})
        self._write()

    def _passed(self, stage: str | None) -> dict[Phase, float]:
        """The phases gone through, with the one that ends now; none of the stage before."""
        before, longest = self.now, self.longest
        self.longest = 0.0
        if stage not in (None, before.stage):
            return {}
        seconds = round(max(before.passed.get(before.phase, 0.0), longest), 3)
        return {**before.passed, before.phase: seconds}

    def leave(self, code: int) -> None:
        """The last sign: the process leaves of its own."""
        self.now = self.now.model_copy(update={"left": code})
        self._write()

    def _write(self) -> None:
        self.written = self.clock()
        told = {"count": self.now.count + 1, "signs": self.signs, "seconds": round(self.written, 3)}
        self.now = self.now.model_copy(update=told)
        try:
            os.pwrite(self.file, self.now.model_dump_json().encode().ljust(BYTES), 0)
        except OSError:  # a full disk is told by what the run itself cannot write
            return


_heart: Heart | None = None


def begin(run: RunDir, rank: int, world: int) -> None:
    """From now on this process tells of life."""
    global _heart
    _heart = Heart(run.heartbeat(rank), rank, world)


def beat(phase: Phase | None = None, *, step: int | None = None, stage: str | None = None) -> None:
    """Tell of life, if this is a process of a child; without a phase, in the one that it is in."""
    if _heart is not None:
        _heart.beat(phase, step=step, stage=stage)


@contextmanager
def during(phase: Phase) -> Iterator[None]:
    """Within, the process is in this phase; then in the one before, unless it fails there."""
    before = _heart.now.phase if _heart is not None else "start-up"
    beat(phase)
    yield
    beat(before)


def where() -> tuple[Phase, int]:
    """The phase that this process is in, and the last training step that it has made."""
    return (_heart.now.phase, _heart.made) if _heart is not None else ("start-up", 0)


def leave(code: int) -> None:
    """Tell that this process leaves of its own."""
    if _heart is not None:
        _heart.leave(code)


def read(run: RunDir) -> dict[int, Beat]:
    """The last sign of each process, by rank; without those that are being written just now."""
    found = {}
    for path in sorted(run.heartbeats.glob("*.json")):
        try:
            one = Beat.model_validate(json.loads(path.read_bytes()))
        except (OSError, ValueError, ValidationError):
            continue
        found[one.rank] = one
    return found
