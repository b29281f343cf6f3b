"""Another machine than the first: it answers the first one's calls, and starts and ends its part of the processes."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from align.engines import choose
from align.errors import AlignError, Exit
from align.run_folder.launch import Place
from align.run_folder.machines import SILENT, Answer, Call, Told, read
from align.run_folder.paths import RunDir
from align.runner import launch, signals, supervise
from align.runner.hung import Silence
from align.runner.machines import AGAIN, BROKEN, GATHERING, POLL
from align.runner.supervise import Supervisor

LEAVING = 10.0  # seconds for processes that have nothing more to do


class Follower:
    """One of the other machines of a run. It takes part in one command of the first machine, and ends with that.

    Args:
        place: of this machine.
        recipe: a hash of the recipe with all that was set.
        say: prints a line that stays.
    """

    def __init__(self, run: RunDir, place: Place, recipe: str, say: Callable[[str], None]) -> None:
        self.run, self.place, self.recipe, self.say = run, place, recipe, say
        self.before = read(run.call, Call)  # of a command that may have ended long ago
        self.call: Call | None = None  # of the command that this machine takes part in
        self.told: Told[Answer] | None = None
        self.heard = time.monotonic()
        self.interrupted = False

    def follow(self) -> Exit:
        """Take part until the run is over; its exit code.

        Raises:
            AlignError: this machine cannot take part, or the first one has failed, is lost or does not call.
            KeyboardInterrupt: this machine or the first was interrupted; a checkpoint was saved.
        """
        number = self.place.machine
        self.say(f"machine {number}: waiting for the first machine, in the run folder {self.run.root}")
        try:
            while True:
                try:
                    self._listen()
                    if self.call is not None and self.call.state == "over":
                        return self._over(self.call)
                    self._answer()
                    time.sleep(POLL)
                except KeyboardInterrupt:
                    self._interrupt()
        finally:
            if self.told is not None:
                self.told.end()

    def _over(self, call: Call) -> Exit:
        if self.interrupted or call.code == Exit.INTERRUPTED:
            self.interrupted = True
            raise KeyboardInterrupt
        if call.why:
            raise AlignError(f"the first machine ended the run: {call.why}", call.remedy or AGAIN, exit=Exit(call.code))
        return Exit(call.code)

    def _interrupt(self) -> None:
        """Ask the first machine to end the run, and go on until it has.

        Raises:
            KeyboardInterrupt: there is no run, it is over, or this is the second time.
        """
        if self.told is None or self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.say("stopping all machines after this step, with a checkpoint; Ctrl-C again stops this one at once")
        self.told.change(state="interrupted")

    # ---- listening ------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Hear what the first machine wants.

        Raises:
            AlignError: nothing was heard of it for too long, or it was started anew.
        """
        now, found = time.monotonic(), read(self.run.call, Call)
        if found is not None and found != self.before:
            self.before = found
            if self.call is None and found.state != "over":
                self._join(found)
            if self.call is not None and found.run != self.call.run:
                what = "the first machine was started anew, and this one belongs to the run before"
                raise AlignError(what, AGAIN, exit=Exit.STAGE_FAILED)
            if self.call is not None:
                self.call, self.heard = found, now
        silent = now - self.heard
        if self.call is None and silent > GATHERING:
            what = f"the first machine has not called for {GATHERING / 60:.0f} minutes"
            remedy = f"start the same command there, with --machine-rank 0 and the run folder {self.run.root}"
            raise AlignError(what, remedy, exit=Exit.STAGE_FAILED)
        failed = self.told is not None and self.told.now.state == "ended" and self.told.now.code != Exit.DONE
        if self.call is not None and silent > (BROKEN if failed else SILENT):
            what = f"nothing was heard of the first machine for {silent:.0f} s: it was ended, or is cut off"
            raise AlignError(what, AGAIN, exit=Exit.STAGE_FAILED)

    def _join(self, call: Call) -> None:
        """Take part in the command that calls."""
        self.call, who = call, secrets.token_hex(8)
        answer = Answer(machine=self.place.machine, host=socket.gethostname(), who=who, run=call.run)
        self.told = Told(self.run.answer(self.place.machine), answer)

    # ---- answering ------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Say whether this machine is ready, and start once the first one does. Calls for fewer are not for it.

        Raises:
            AlignError: it is not ready, or another one was given its number.
        """
        call, told = self.call, self.told
        if call is None or told is None or self.interrupted or self.place.machine >= call.launch.machines:
            return
        if call.state == "gather" and told.now.id != call.id:
            trouble = self._trouble(call)
            if trouble is not None:
                told.change(state="refused", id=call.id, what=trouble[0], remedy=trouble[1])
                raise AlignError(*trouble, exit=Exit.MACHINE)
            told.change(state="ready", id=call.id)
        elif call.state == "start" and (self.place.machine, told.now.who) not in call.members:
            what = f"another machine {self.place.machine} takes part in this run"
            raise AlignError(what, "give each machine its own --machine-rank, once", exit=Exit.MACHINE)
        elif call.state == "start" and told.now.state == "ready":
            self._take_part(call, told)

    def _trouble(self, call: Call) -> tuple[str, str] | None:
        """Why this machine cannot take part."""
        if call.recipe != self.recipe:
            what = "it was given another recipe than the first machine, or other values of --set"
            return what, "give the same command on every machine, but for --machine-rank"
        absent = next((path for path in (call.folder, *call.needs) if not Path(path).exists()), None)
        if absent is not None:
            return (
                f"'{absent}' is not there",
                "every machine needs the same files at the same paths, as on a shared disk",
            )
        return choose.of(call.launch).missing(call.launch)

    def _take_part(self, call: Call, told: Told[Answer]) -> None:
        """Start this machine's processes, and watch over them until they or the first machine end."""
        number, log = self.place.machine, self.run.child_log_of(self.place.machine)
        os.chdir(call.folder)
        with signals.held():
            process = launch.start(self.run.root, call.launch, log, Place(number, call.address, call.port))
        supervisor = Supervisor(self.run, process, number)
        told.change(state="running")
        supervisor.begin()
        try:
            while self._goes_on(call, told, process, supervisor):
                try:
                    time.sleep(POLL)
                    self._listen()
                except KeyboardInterrupt:
                    self._interrupt()
        finally:
            if process.stdin is not None:
                process.stdin.close()
            supervisor.end()

    def _goes_on(
        self, call: Call, told: Told[Answer], process: subprocess.Popen[bytes], supervisor: Supervisor
    ) -> bool:
        """Whether this machine's processes are to go on; how they ended is told."""
        if self.call is None or self.call.id != call.id or self.call.state in ("end", "over"):
            with_nothing_to_do = time.monotonic() + LEAVING
            while process.poll() is None and time.monotonic() < with_nothing_to_do:
                time.sleep(POLL)
            return False
        code = process.poll()
        trouble = code is None and supervisor.trouble()
        if code is None and not trouble:
            return True
        if code == Exit.DONE:
            told.change(state="ended")
            return False
        self._tell_end(told, process, supervisor, trouble)
        return False

    def _tell_end(
        self, told: Told[Answer], process: subprocess.Popen[bytes], supervisor: Supervisor, trouble: Silence | bool
    ) -> None:
        """Say why this machine's processes have ended before their time."""
        stage = next((beat.stage for beat in supervisor.beats.values() if beat.stage), "")
        cause = supervisor.cause(self.run.stage(stage), trouble) if stage else None
        if self.interrupted or (cause is not None and cause.interrupted):
            return  # as they were asked to
        code = process.poll()
        what, remedy = "its processes " + supervise.ended(-9 if code is None else code), AGAIN
        if cause is not None and cause.failure is not None:
            what, remedy = cause.failure.what, cause.failure.remedy
        elif cause is not None:
            rank = f"rank {cause.rank} of {cause.world}"
            ended = supervise.ended(-9 if cause.code is None else cause.code)
            what = f"{rank} hangs {cause.at}: {cause.words}" if cause.words else f"{rank} {ended}"
            what += f", {cause.at}" if cause.at and not cause.words else ""
        told.change(state="ended", what=what, remedy=remedy, code=int(Exit.STAGE_FAILED))
