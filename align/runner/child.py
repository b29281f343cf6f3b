"""The parent's end of the child process: hand it tickets, wait for outcomes, say how it died."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from align.errors import AlignError, Exit, OutOfMemory
from align.parameterization import chain
from align.recipe.launch_refusals import compiles
from align.run_folder import files, messages, reading, secrets
from align.run_folder.comparison import ComparisonRequest, ComparisonResult
from align.run_folder.interpolation import InterpolationRequest, InterpolationResult
from align.run_folder.launch import ALONE, Launch
from align.run_folder.messages import Compare, Execute, Finish, Interpolate
from align.run_folder.paths import RunDir
from align.run_folder.records import Failure
from align.run_folder.stage_dir import StageDir
from align.runner import launch, signals, supervise
from align.runner.hung import Silence
from align.runner.machines import Lost, Machines
from align.runner.progress import Watcher
from align.runner.supervise import Cause, Supervisor

POLL_SECONDS = 0.1
MEETING = 600.0  # seconds for the processes of several machines to come up
TEARDOWN = 60.0  # seconds for processes that have nothing more to do


class Child:
    """Executes tickets; started with the first one and reused for all that follow with the same launch: the stack is
    imported once for them."""

    def __init__(self, run: RunDir, watcher: Watcher, meanwhile: Callable[[], None], machines: Machines) -> None:
        """`meanwhile` is called again and again while a stage is at work; `machines` are those beside this one."""
        self.dir, self.watcher, self.meanwhile, self.machines = run, watcher, meanwhile, machines
        self.process: subprocess.Popen[bytes] | None = None
        self.supervisor: Supervisor | None = None
        self.sent, self.stage = 0, ""
        self.launch, self.began = Launch(), 0.0  # of the process
        self.spent = False  # whether it holds what it cannot let go: DeepSpeed keeps each model of ZeRO-3

    def execute(self, stage: str, launched: Launch) -> None:
        """Hand a stage's ticket over and wait for its outcome.

        Raises:
            AlignError: the stage failed, the child died or hung, or the run folder is gone.
        """
        here = self.dir.stage(stage)
        self._hand_over(here, Execute(stage=stage), launched)
        self.spent = self.spent or launched.zero_stage == 3
        self._until(lambda: files.read_json(here.outcome) is not None, stage)
        self.watcher.refresh()
        self.watcher.end()

    def interpolate(self, request: InterpolationRequest, launched: Launch) -> InterpolationResult:
        """Have a share of a stage's update found, as the request in the stage's folder says, and wait for the result.

        Raises:
            AlignError: the method has none, the child died or hung, or the run folder is gone.
        """
        here = self.dir.stage(request.stage)
        done: list[InterpolationResult] = []

        def is_done() -> bool:
            found = reading.whole(here.interpolation_result, InterpolationResult)
            done.extend([found] if found is not None and found.key == request.key else [])
            return bool(done)

        self._hand_over(here, Interpolate(stage=request.stage), launched)
        self._until(is_done, request.stage, f"while it measured shares of the update of stage '{request.stage}'")
        self.watcher.end()
        return done[-1]

    def compare(self, request: ComparisonRequest) -> bool:
        """Have branches compared; returns whether that came to an end. The run's results do not depend on it."""
        process, supervisor = self._started(self.launch)  # the first process compares, whatever their number
        self._send(Compare(branches=request))
        supervisor.begin()
        while (done := reading.whole(self.dir.comparison, ComparisonResult)) is None or done.key != request.key:
            if process.poll() is not None or supervisor.trouble():
                supervisor.end()
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _hand_over(self, here: StageDir, message: Execute | Interpolate, launched: Launch) -> None:
        self.stage = message.stage
        if self.machines.asked():
            raise KeyboardInterrupt
        ticket = files.read_object(here.ticket)
        needs = [ticket["policy"]["base"]["path"]] if "policy" in ticket else []
        _, supervisor = self._started(launched, needs)
        for old in here.errors:  # of processes that are gone now; whoever began the stage has taken away its own
            if old != here.error:
                old.unlink()
        self._send(message)
        supervisor.begin(compiles=compiles(ticket.get("training", {})))

    def _until(self, done: Callable[[], bool], stage: str, at: str = "") -> None:
        """Wait, and see whether the processes are well."""
        try:
            self._wait(done, stage, at)
        finally:
            self._hide()

    def _wait(self, done: Callable[[], bool], stage: str, at: str) -> None:
        process, supervisor = self._at_work()
        while not done():
            self.watcher.refresh()
            self.meanwhile()
            gone = process.poll() is not None
            trouble = supervisor.trouble()
            if self.machines.asked():
                raise KeyboardInterrupt
            lost = self.machines.lost() or self._apart(supervisor)
            if (gone or trouble or lost) and not done():  # it may have come to its end just before
                self.watcher.end()
                raise self._failure(stage, trouble, at, lost)
            if not self.dir.asked(self.sent).is_file():
                self.watcher.end()
                raise self._deleted(supervisor)
            time.sleep(POLL_SECONDS)

    def _started(self, launched: Launch, needs: Sequence[str] = ()) -> tuple[subprocess.Popen[bytes], Supervisor]:
        """The process; another one where it was started with another launch than is wanted now.

        Args:
            needs: paths that every machine has to find.
        """
        if self.process is not None and (launched != self.launch or self.spent):
            self.finish()
            self.end()
            self.process, self.supervisor, self.sent = None, None, 0
        if self.process is None or self.supervisor is None:
            shutil.rmtree(self.dir.queue, ignore_errors=True)
            place = self.machines.gather(launched, needs) if launched.machines > 1 else ALONE
            with signals.held():
                self.process = launch.start(self.dir.root, launched, self.dir.child_log, place)
                self.launch, self.began = launched, time.monotonic()
                self.spent = False
                self.supervisor = Supervisor(self.dir, self.process)
        return self.process, self.supervisor

    def _at_work(self) -> tuple[subprocess.Popen[bytes], Supervisor]:
        """The process that was handed something, whether or not it is still alive."""
        assert self.process is not None and self.supervisor is not None
        return self.process, self.supervisor

    def _apart(self, supervisor: Supervisor) -> Lost | None:
        """Processes of several machines that have not met for a while; none has told anything then."""
        if self.launch.machines == 1 or supervisor.beats or time.monotonic() - self.began < MEETING:
            return None
        where = self.machines.place.address
        what = f"the processes of all machines did not meet at {where} within {MEETING / 60:.0f} minutes"
        return Lost(what, "see that every machine reaches --main-address, which is that of machine 0, and its ports")

    def finish(self) -> None:
        """No more tickets."""
        if self.process is not None:
            self._send(Finish())
            try:
                self.process.wait(timeout=TEARDOWN)
            except subprocess.TimeoutExpired:  # all that they did is written
                self._end_all()

    def interrupt(self) -> None:
        """Ask for a checkpoint and an end; a second Ctrl-C does not wait."""
        if self.process is None or self.supervisor is None or self.process.poll() is not None:
            return
        self.watcher.say("stopping after this step, with a checkpoint; Ctrl-C again stops at once")
        try:
            self.dir.stop.touch()  # a signal would go to the launcher of several processes
            trouble: Silence | bool = False
            while self.process.poll() is None and not (trouble := self.supervisor.trouble()):
                if (
                    self.launch.machines > 1 and not self.supervisor.beats
                ):  # they have not met: there is nothing to save
                    break
                if self.machines.lost() is not None:
                    break
                time.sleep(POLL_SECONDS)
            for path in self.dir.stage(self.stage).errors if self.stage else ():
                if (failure := reading.whole(path, Failure)) is not None and not failure.secondhand:
                    self.watcher.say(f"{self.stage}: no checkpoint was saved: {failure.what}", "warning")
            if isinstance(trouble, Silence):
                self.watcher.say(f"{self.stage}: no checkpoint was saved: a process hangs", "warning")
        except (KeyboardInterrupt, OSError):
            pass
        self._end_all()

    def end(self) -> None:
        """Leave no process behind."""
        if self.process is None:
            return
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
        self._end_all()
        self._hide()
        shutil.rmtree(self.dir.queue, ignore_errors=True)

    def _hide(self) -> None:
        """Take secrets out of what the processes have printed."""
        for log in (*self.dir.child_logs, *(self.dir.stage(self.stage).logs if self.stage else ())):
            secrets.hide_in(log)

    def _end_all(self) -> None:
        self.machines.end()
        if self.supervisor is not None:
            self.supervisor.end()

    def _send(self, message: Execute | Compare | Interpolate | Finish) -> None:
        self.sent += 1
        messages.send(self.dir, self.sent, message)

    # ---- what is said ---------------------------------------------------------------------------------------------

    def _deleted(self, supervisor: Supervisor) -> AlignError:
        """Somebody took the folder away: the child would wait for ever for what it is to do next."""
        supervisor.end()
        gone = self.dir.queue if self.dir.is_there() else self.dir.root
        what = f"'{gone}' was deleted while the run was under way"
        return AlignError(what, "run the same command again; it goes on from what is left", exit=Exit.STAGE_FAILED)

    def _failure(self, stage: str, trouble: Silence | bool, at: str, lost: Lost | None) -> AlignError:
        """Why there is no outcome, once all processes are ended.

        Args:
            lost: another machine that does no more.

        Raises:
            KeyboardInterrupt: they left because they were asked to.
        """
        process, supervisor = self._at_work()
        here = self.dir.stage(stage)
        cause = supervisor.cause(here, trouble)
        # NCCL ends a process with SIGABRT where another one is gone
        broken = cause is None or cause.code == -signal.SIGABRT or bool(cause.failure and cause.failure.secondhand)
        lost = lost or (self.machines.lost_soon() if broken else None)
        self.machines.end()
        if process.returncode == Exit.INTERRUPTED or (cause is not None and cause.interrupted):
            raise KeyboardInterrupt
        if lost is not None and broken:
            return AlignError(lost.what, lost.remedy, exit=Exit.STAGE_FAILED)
        if cause is not None and cause.failure is not None:
            return self._told(here, cause.failure)
        step = self.watcher.state.get("step")
        at = at or (cause.at if cause is not None and cause.world > 1 else "")
        at = at or (f"at step {step} of stage '{stage}'" if step else f"at the start of stage '{stage}'")
        return self._ended(here, stage, cause, at)

    def _ended(self, here: StageDir, stage: str, cause: Cause | None, at: str) -> AlignError:
        """What is said of a process that said nothing itself."""
        assert self.process is not None
        code, who, rank = self.process.returncode, "the training process", 0
        if cause is not None and cause.world > 1:
            who, rank = f"rank {cause.rank} of {cause.world}", cause.rank
            code = code if cause.code is None else cause.code
        log = here.log_of(rank) if here.log_of(rank).is_file() else self.dir.child_log
        if cause is not None and cause.words:
            what = f"{who} hangs {cause.at}: {cause.words}"
            remedy = f"run the same command again and it resumes; what each process was doing is in its log, {log}"
        else:
            what = f"{who} {supervise.ended(code)}, {at}"
            remedy = f"run the same command again and it resumes{self._memory(here, stage, code)}; the log is {log}"
        if who != "the training process":
            failure = Failure(what=what, remedy=remedy, exit=int(Exit.STAGE_FAILED), rank=rank)
            files.write_json(here.error, failure.written())
        return AlignError(what, remedy, exit=Exit.STAGE_FAILED)

    def _told(self, here: StageDir, failure: Failure) -> AlignError:
        """What a process said of itself."""
        remedy = failure.remedy
        if failure.traceback:
            remedy = f"the traceback is in {here.log_of(failure.rank)}; fix the cause and run the same command again"
        if failure.rank:
            files.write_json(here.error, failure.written())
        if failure.out_of_memory is not None:
            self.spent = True  # it is gone, and another one has to be started
            phase, step = failure.out_of_memory.phase, failure.out_of_memory.step
            return OutOfMemory(failure.what, remedy, phase, step, Exit(failure.exit))
        return AlignError(failure.what, remedy, exit=Exit(failure.exit))

    def _memory(self, here: StageDir, stage: str, code: int) -> str:
        """What lets a process that was killed do with less memory."""
        if code != -signal.SIGKILL:
            return ""
        known = files.read_object(here.ticket).get("parameterization")
        other = "" if known and chain.Layer.of(known, stage).quantized else " or use qlora"
        return f"; to need less memory lower per_device_train_batch_size{other}"
