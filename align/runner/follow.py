"""Another machine than the first: it answers the first one's calls, and starts and ends its part of the processes."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from align.engines import choose
from align.errors import AlignError, Exit
from align.run_folder import files, reading
from align.run_folder.launch import Place
from align.run_folder.machines import SILENT, Answer, Call
from align.run_folder.paths import RunDir
from align.runner import launch, signals, supervise
from align.runner.machines import AGAIN, BROKEN, EVERY, GATHERING, POLL
from align.runner.supervise import Supervisor

LEAVING = 10.0  # seconds for processes that have nothing more to do


class Follower:
    """One of the other machines of a run.

    Args:
        place: of this machine.
        recipe: a hash of the recipe with all that was set.
        say: prints a line that stays.
    """

    def __init__(self, run: RunDir, place: Place, recipe: str, say: Callable[[str], None]) -> None:
        self.run, self.place, self.recipe, self.say = run, place, recipe, say
        self.before = self._call()  # of a run that may have ended long ago
        self.call: Call | None = None
        self.answer: Answer | None = None
        self.heard, self.told = time.monotonic(), 0.0
        self.interrupted = False

    def follow(self) -> Exit:
        """Take part until the run is over; its exit code.

        Raises:
            AlignError: this machine cannot take part, or the first one has failed, is lost or does not call.
            KeyboardInterrupt: this machine or the first was interrupted; a checkpoint was saved.
        """
        self.say(f"machine {self.place.machine}: waiting for the first machine, which runs the recipe")
        while True:
            self._listen()
            call = self.call
            if call is not None and call.state == "over":
                return self._over(call)
            if call is not None and call.state == "gather" and (self.answer is None or self.answer.id != call.id):
                self._answer_to(call)
            elif call is not None and call.state == "start" and self._is_ready(call):
                self._take_part(call)
            time.sleep(POLL)

    def _is_ready(self, call: Call) -> bool:
        return self.answer is not None and (self.answer.id, self.answer.state) == (call.id, "ready")

    def _over(self, call: Call) -> Exit:
        if self.interrupted or call.code == Exit.INTERRUPTED:
            raise KeyboardInterrupt
        if call.why:
            raise AlignError(f"the first machine ended the run: {call.why}", AGAIN, exit=Exit(call.code))
        return Exit(call.code)

    # ---- listening ------------------------------------------------------------------------------------------------

    def _call(self) -> Call | None:
        return reading.whole(self.run.call, Call)

    def _listen(self) -> None:
        """Hear what the first machine wants, and tell that this one is there.

        Raises:
            AlignError: nothing was heard of it for too long.
        """
        now, found = time.monotonic(), self._call()
        if found is not None and found != self.before:
            self.before, self.call, self.heard = found, found, now
        silent = now - self.heard
        if self.call is None and silent > GATHERING:
            what = f"the first machine has not called for {GATHERING / 60:.0f} minutes"
            raise AlignError(what, "start the same command there, with --machine-rank 0 and the same run folder")
        failed = self.answer is not None and self.answer.state == "ended" and self.answer.code != Exit.DONE
        if self.call is not None and silent > (2 * BROKEN if failed else SILENT):
            what = f"nothing was heard of the first machine for {silent:.0f} s: it was ended, or is cut off"
            raise AlignError(what, AGAIN, exit=Exit.STAGE_FAILED)
        if self.answer is not None and now - self.told > EVERY:
            self._tell(self.answer.but(signs=self.answer.signs + 1))

    def _tell(self, answer: Answer) -> None:
        self.answer, self.told = answer, time.monotonic()
        try:
            files.write_json(self.run.answer(self.place.machine), answer.model_dump(mode="json"))
        except OSError:  # the folder is gone: the first machine ends, and then this one
            return

    # ---- taking part ----------------------------------------------------------------------------------------------

    def _answer_to(self, call: Call) -> None:
        """Say whether this machine is ready.

        Raises:
            AlignError: it is not.
        """
        host, trouble = socket.gethostname(), self._trouble(call)
        base = Answer(machine=self.place.machine, host=host, id=call.id, state="ready")
        if trouble is not None:
            self._tell(base.but(state="refused", what=trouble[0], remedy=trouble[1]))
            raise AlignError(*trouble, exit=Exit.MACHINE)
        self._tell(base)

    def _trouble(self, call: Call) -> tuple[str, str] | None:
        """Why this machine cannot take part."""
        if call.recipe != self.recipe:
            what = "it was given another recipe than the first machine, or other values of --set"
            return what, "give the same command on every machine, but for --machine-rank"
        if not self.place.machine < call.launch.machines:
            what = f"it is machine {self.place.machine}, but there are {call.launch.machines}, from 0"
            return what, "give each machine its own --machine-rank"
        absent = next((path for path in (call.folder, *call.needs) if not Path(path).exists()), None)
        if absent is not None:
            return (
                f"'{absent}' is not there",
                "every machine needs the same files at the same paths, as on a shared disk",
            )
        return choose.of(call.launch).missing(call.launch)

    def _take_part(self, call: Call) -> None:
        """Start this machine's processes, and watch over them until they or the first machine end."""
        assert self.answer is not None
        number, log = self.place.machine, self.run.child_log_of(self.place.machine)
        os.chdir(call.folder)
        with signals.held():
            process = launch.start(self.run.root, call.launch, log, Place(number, call.address, call.port))
        supervisor = Supervisor(self.run, process, number)
        self._tell(self.answer.but(state="running"))
        try:
            self._watch(call, process, supervisor)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            supervisor.end()

    def _watch(self, call: Call, process: subprocess.Popen[bytes], supervisor: Supervisor) -> None:
        supervisor.begin()
        while True:
            try:
                self._listen()
                if self.call is not None and (self.call.id != call.id or self.call.state in ("end", "over")):
                    self._leave(process)
                    return
                code = process.poll()
                if code is not None or supervisor.trouble():
                    self._tell_end(call, process, supervisor)
                    return
                time.sleep(POLL)
            except KeyboardInterrupt:
                if self.interrupted:
                    raise
                self.interrupted = True
                self.say(
                    "stopping all machines after this step, with a checkpoint; Ctrl-C again stops this one at once"
                )
                self.run.stop.touch()

    def _leave(self, process: subprocess.Popen[bytes]) -> None:
        """Let processes that have nothing more to do end by themselves."""
        try:
            process.wait(timeout=LEAVING)
        except subprocess.TimeoutExpired:
            return

    def _tell_end(self, call: Call, process: subprocess.Popen[bytes], supervisor: Supervisor) -> None:
        """Say how this machine's processes have ended."""
        assert self.answer is not None
        if process.poll() == Exit.DONE:
            self._tell(self.answer.but(state="ended"))
            return
        stage = next((beat.stage for beat in supervisor.beats.values() if beat.stage), "")
        cause = supervisor.cause(self.run.stage(stage), False) if stage else None
        code = process.poll()
        what, remedy = "its processes " + supervise.ended(-9 if code is None else code), AGAIN
        if cause is not None and cause.failure is not None:
            what, remedy = cause.failure.what, cause.failure.remedy
        elif cause is not None and not cause.interrupted:
            ended = -9 if cause.code is None else cause.code
            what = f"rank {cause.rank} of {cause.world} {supervise.ended(ended)}" + (
                f", {cause.at}" if cause.at else ""
            )
        if code == Exit.INTERRUPTED or (cause is not None and cause.interrupted):
            code = Exit.INTERRUPTED
        left = code if code in (Exit.DONE, Exit.INTERRUPTED) else Exit.STAGE_FAILED
        self._tell(self.answer.but(state="ended", what=what, remedy=remedy, code=int(left)))
