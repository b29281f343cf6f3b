"""Sees that a process of the child has died or hangs, finds out which one it was and why, and ends all of them."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from align.errors import Exit
from align.run_folder import heartbeats, reading
from align.run_folder.heartbeats import Beat
from align.run_folder.paths import RunDir
from align.run_folder.records import Failure
from align.run_folder.stage_dir import StageDir
from align.runner import logs, processes, stacks
from align.runner.hung import Listener, Silence

EVERY = 0.5  # seconds between two looks
REASONS = 1.5  # seconds for a process that failed, and the launcher, to say why
LEAVING = 10.0  # seconds for the others, once one has left because the run was asked to stop
WORK = 60.0  # CPU seconds that are a sign of life
MOVED = 2**26  # bytes read from disks or written to them that are one too
# in the line on the first that failed, and in the table of all: torch calls the first whom it sees first
_EXIT = re.compile(r"exitcode\s*: (-?\d+)\)?(?: local_rank: \d+)? \(pid: (\d+)\)")

PHASES = {
    "start-up": "at the start of stage '{stage}'",
    "step": "after step {step} of stage '{stage}'",
    "rollout": "in the rollout after step {step} of stage '{stage}'",
    "evaluation": "in the evaluation after step {step} of stage '{stage}'",
    "measuring": "while it measured the probes, in stage '{stage}'",
    "saving": "while it saved the checkpoint of step {step} of stage '{stage}'",
    "harness": "in a task of the evaluation harness, in stage '{stage}'",
    "closing": "after the last step of stage '{stage}'",
    "waiting": "between two stages",
}


@dataclass(frozen=True)
class Cause:
    """What went wrong first.

    Attributes:
        world: how many processes there are, on all machines.
        at: where it was, if that is known better than by the last step that was logged.
        failure: what the process itself said.
        code: that it ended with, as subprocess has it; None where that is not known.
        words: what is told of one that hangs.
    """

    rank: int
    world: int
    at: str
    failure: Failure | None = None
    code: int | None = None
    words: str = ""
    interrupted: bool = False


class Supervisor:
    """Watches the processes of one child.

    Args:
        machine: the number of this one, whose processes are its own; of those of others it knows what they tell.
    """

    def __init__(self, run: RunDir, process: subprocess.Popen[bytes], machine: int = 0) -> None:
        self.run, self.process, self.listener, self.machine = run, process, Listener(), machine
        self.log = run.child_log_of(machine)
        self.looked, self.stopped, self.leaving = 0.0, dict[int, float](), 0.0
        self.log_began = self.log.stat().st_size if self.log.is_file() else 0
        self.beats: dict[int, Beat] = {}
        self.spent: dict[int, float] = {}  # CPU seconds of each rank when it was last seen to work
        self.moved: dict[int, int] = {}  # bytes of each rank when it was last seen to read or write

    # ---- looking --------------------------------------------------------------------------------------------------

    def begin(self, *, compiles: bool = False) -> None:
        """A ticket was handed over; of a stage that compiles its model."""
        self.listener.reset(compiles=compiles)
        self.stopped.clear()

    def trouble(self) -> Silence | bool:
        """Whether a process has died, failed, left before the others did, or hangs; of hanging, for how long."""
        now = time.monotonic()
        if now - self.looked < EVERY:
            return False
        self.looked = now
        self.beats = heartbeats.read(self.run)
        for beat in self._own():
            if beat.left is None and not processes.is_gone(beat.pid):
                logs.cut(self.run.stage(beat.stage).log_of(beat.rank))
        silence = self.listener.hear(self.beats, now, self._working(), self._moving())
        if self._dead() or any(beat.left for beat in self.beats.values()):
            return not self._is_leaving(now)
        # the first machine judges silence: it knows what a stage compiles
        return (silence if self.machine == 0 else False) or self._stopped()

    def _own(self) -> list[Beat]:
        """The processes on this machine."""
        return [beat for beat in self.beats.values() if beat.machine == self.machine]

    def _working(self) -> set[int]:
        """Those that have computed for a while since they were last said to: not one that only looks now and then
        whether another has come. All of them where the system does not say: none is then taken for hanging by a limit
        that nothing was learnt for."""
        found = set()
        for beat in self._own():
            spent = processes.computed(beat.pid)
            if spent is None:
                found.add(beat.rank)
            elif spent - self.spent.setdefault(beat.rank, spent) >= WORK:
                self.spent[beat.rank] = spent
                found.add(beat.rank)
        return found

    def _moving(self) -> set[int]:
        """Those that have read or written much: loading from a slow disk, or saving to one, is not hanging."""
        found = set()
        for beat in self._own():
            moved = processes.moved(beat.pid)
            if moved - self.moved.setdefault(beat.rank, moved) >= MOVED:
                self.moved[beat.rank] = moved
                found.add(beat.rank)
        return found

    def _dead(self) -> list[Beat]:
        """Those that are gone without a word."""
        return [beat for beat in self._own() if beat.left is None and processes.is_gone(beat.pid)]

    def _is_leaving(self, now: float) -> bool:
        """Whether all are on their way out because the run was asked to stop, and still have time."""
        if not any(beat.left == Exit.INTERRUPTED for beat in self.beats.values()):
            return False
        self.leaving = self.leaving or now
        return now - self.leaving < LEAVING and self.process.poll() is None

    def _stopped(self) -> Silence | bool:
        """A process that the system has stopped makes nothing, in whatever phase."""
        watched = self.listener.watched
        for beat in self._own():
            if (processes.state(beat.pid) or "").upper() != "T":
                self.stopped.pop(beat.rank, None)
                continue
            seconds = watched - self.stopped.setdefault(beat.rank, watched)
            if seconds > self.listener.floor:
                return Silence((beat,), seconds, self.listener.floor)
        return False

    # ---- finding out ----------------------------------------------------------------------------------------------

    def cause(self, here: StageDir, trouble: Silence | bool) -> Cause | None:
        """Who failed first and why; None where nobody knows. All processes are ended."""
        if isinstance(trouble, Silence):
            found: Cause | None = self._hung(here, trouble)
        else:
            found = self._said(here)
            if found is not None and found.failure is None and not found.interrupted:
                known = found.code is not None or found.world == 1
                found = found if known else replace(found, code=self._code(found.rank))
        self.end()
        return found

    def _said(self, here: StageDir) -> Cause | None:
        """The first cause that is known, after a while in which others may still say why they fail."""
        began = time.monotonic()
        while True:
            self.beats = heartbeats.read(self.run) or self.beats
            found = self._failed(here)
            firsthand = found is not None and found.failure is not None and not found.failure.secondhand
            alone = all(beat.world == 1 for beat in self.beats.values())  # whatever it had to say is written
            patience = REASONS / 3 if self._dead() else REASONS  # its end may be told already
            known = alone or firsthand or (found is not None and found.interrupted)
            if known or time.monotonic() - began > patience:
                return found
            time.sleep(0.05)

    def end(self) -> None:
        """End all processes of the child."""
        processes.end([self.process.pid, *(beat.pid for beat in self._own())], fetch=self.process.poll)
        with suppress(subprocess.TimeoutExpired):  # one that waits for a device ends when that answers
            self.process.wait(timeout=REASONS)

    def _failed(self, here: StageDir) -> Cause | None:
        said = [(path.stat().st_mtime_ns, one) for path in here.errors if (one := reading.whole(path, Failure))]
        failures = [one for _, one in sorted(said, key=lambda pair: pair[0])]
        first = next((one for one in failures if not one.secondhand), None)
        if first is None and (dead := self._dead()):  # then the launcher asks the others to leave, and they say so
            beat = min(dead, key=lambda beat: beat.rank)
            return Cause(beat.rank, beat.world, "" if beat.phase == "step" else _at(beat))
        if first is None and any(beat.left == Exit.INTERRUPTED for beat in self.beats.values()):
            return Cause(0, 1, "", interrupted=True)
        first = first or next(iter(failures), None)
        if first is not None:
            return Cause(first.rank, len(self.beats), "", failure=first)
        left = [beat for beat in self.beats.values() if beat.left]
        return Cause(left[0].rank, left[0].world, "", code=left[0].left) if left else None

    def _code(self, rank: int) -> int | None:
        """What a process ended with, which only the launcher knows. It tells of the first that failed once the others
        have ended too, for which it waits half a minute: so these are ended first."""
        pid = self.beats[rank].pid
        processes.end(beat.pid for beat in self._own() if beat.pid != pid)
        until = time.monotonic() + REASONS
        while not (codes := self._codes()) and time.monotonic() < until:
            time.sleep(0.05)
        return codes.get(pid, 0) if codes else None

    def _codes(self) -> dict[int, int]:
        """What the launcher says that processes ended with, by their ids; of one that ended with 0 it says nothing."""
        try:
            with self.log.open("rb") as file:
                file.seek(self.log_began)
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return {}
        return {int(pid): int(code) for code, pid in _EXIT.findall(text)}

    def _hung(self, here: StageDir, silence: Silence) -> Cause:
        """The one that the others wait for, and where it stands."""
        states = {beat.rank: (processes.state(beat.pid) or "").upper() for beat in self._own()}
        pids = {beat.rank: beat.pid for beat in self._own() if states[beat.rank] in ("R", "S")}
        logs = {beat.rank: here.log_of(beat.rank) for beat in self._own()}
        found = stacks.ask(logs, pids)
        beat = blamed(silence, states, found)
        frame = stacks.own(found.get(beat.rank, []))
        words = f"for {silence.seconds:.0f} s nothing of it was heard, and {silence.limit:.0f} s is its limit there"
        if states.get(beat.rank) == "T":
            words += "; the process is stopped, as SIGSTOP does"
        elif states.get(beat.rank) == "D":
            words += "; it waits for a disk or a device"
        elif frame is not None:
            words += f"; it is at {frame}"
        return Cause(beat.rank, beat.world, _at(beat), words=words)


def blamed(silence: Silence, states: dict[int, str], found: dict[int, list[stacks.Frame]]) -> Beat:
    """Of several silent processes the one that keeps the others waiting: a stopped one; else one that is not in a call
    in which it waits for others; else the one that is furthest behind."""
    stopped = [beat for beat in silence.ranks if states.get(beat.rank) in ("T", "D")]
    busy = [beat for beat in silence.ranks if beat.rank in found and not stacks.waits(found[beat.rank])]
    return next(iter(stopped or busy or silence.ranks))


def _at(beat: Beat) -> str:
    return PHASES[beat.phase].format(stage=beat.stage, step=beat.step)


def ended(code: int) -> str:
    """What became of a process, in words."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    return f"was ended by the system with {name}" + (" (out of memory, most often)" if name == "SIGKILL" else "")
