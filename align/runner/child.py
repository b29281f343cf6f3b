"""The parent's end of the child process: hand it tickets, wait for outcomes, say how it died."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from align.errors import AlignError, Exit
from align.parameterization import chain
from align.run_folder import files, messages, reading
from align.run_folder.comparison import ComparisonRequest, ComparisonResult
from align.run_folder.interpolation import InterpolationRequest, InterpolationResult
from align.run_folder.launch import Launch
from align.run_folder.messages import Compare, Execute, Finish, Interpolate
from align.run_folder.paths import RunDir, StageDir
from align.run_folder.records import Failure
from align.runner import launch
from align.runner.progress import Watcher

POLL_SECONDS = 0.1


class Child:
    """Executes tickets; started with the first one and reused for all that follow with the same launch: the stack is
    imported once for them."""

    def __init__(self, run: RunDir, watcher: Watcher, meanwhile: Callable[[], None]) -> None:
        """`meanwhile` is called again and again while a stage is at work."""
        self.dir, self.watcher, self.meanwhile = run, watcher, meanwhile
        self.process: subprocess.Popen[bytes] | None = None
        self.launch = Launch()  # of the process
        self.sent = 0

    def execute(self, stage: str, launched: Launch) -> None:
        """Hand a stage's ticket over and wait for its outcome.

        Raises:
            AlignError: the stage failed, or the child died.
        """
        here, process = self.dir.stage(stage), self._started(launched)
        self._send(Execute(stage=stage))
        while files.read_json(here.outcome) is None:
            self.watcher.refresh()
            self.meanwhile()
            if process.poll() is not None:
                self.watcher.end()
                raise self._failure(stage, here, process.returncode)
            time.sleep(POLL_SECONDS)
        self.watcher.refresh()
        self.watcher.end()

    def interpolate(self, request: InterpolationRequest, launched: Launch) -> InterpolationResult:
        """Have a share of a stage's update found, as the request in the stage's folder says, and wait for the result.

        Raises:
            AlignError: the method has none, or the child died.
        """
        here, process = self.dir.stage(request.stage), self._started(launched)
        self._send(Interpolate(stage=request.stage))
        while (
            done := reading.whole(here.interpolation_result, InterpolationResult)
        ) is None or done.key != request.key:
            self.watcher.refresh()
            self.meanwhile()
            if process.poll() is not None:
                self.watcher.end()
                at = f"while it measured shares of the update of stage '{request.stage}'"
                raise self._failure(request.stage, here, process.returncode, at)
            time.sleep(POLL_SECONDS)
        self.watcher.end()
        return done

    def compare(self, request: ComparisonRequest) -> bool:
        """Have branches compared; returns whether that came to an end. The run's results do not depend on it."""
        process = self._started(self.launch)  # the first of its processes compares, whatever their number
        self._send(Compare(branches=request))
        while (done := reading.whole(self.dir.comparison, ComparisonResult)) is None or done.key != request.key:
            if process.poll() is not None:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _started(self, launched: Launch) -> subprocess.Popen[bytes]:
        """The process; another one where it was started with another launch than is wanted now."""
        if self.process is not None and launched != self.launch:
            self.finish()
            self.end()
            self.process, self.sent = None, 0
        if self.process is None:
            shutil.rmtree(self.dir.queue, ignore_errors=True)
            self.process, self.launch = launch.start(self.dir.root, launched, self.dir.child_log), launched
        return self.process

    def finish(self) -> None:
        """No more tickets."""
        if self.process is not None:
            self._send(Finish())
            self.process.wait()

    def interrupt(self) -> None:
        """Ask for a checkpoint and an end; a second Ctrl-C does not wait."""
        if self.process is None or self.process.poll() is not None:
            return
        self.watcher.say("stopping after this step, with a checkpoint; Ctrl-C again stops at once")
        self.dir.stop.touch()  # a signal would go to the launcher of several processes, which kills them after 30 s
        try:
            self.process.wait()
        except KeyboardInterrupt:
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Leave no process behind."""
        if self.process is None:
            return
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        shutil.rmtree(self.dir.queue, ignore_errors=True)

    def _send(self, message: Execute | Compare | Interpolate | Finish) -> None:
        self.sent += 1
        messages.send(self.dir, self.sent, message)

    def _failure(self, stage: str, here: StageDir, code: int, at: str = "") -> AlignError:
        error = reading.whole(here.error, Failure)
        if error is not None:
            remedy = error.remedy
            if error.traceback:
                remedy = f"the traceback is in {here.log}; fix the cause and run the same command again"
            return AlignError(error.what, remedy, exit=Exit(error.exit))
        if code == Exit.INTERRUPTED:
            raise KeyboardInterrupt
        step = self.watcher.state.get("step")
        at = at or (f"at step {step} of stage '{stage}'" if step else f"at the start of stage '{stage}'")
        memory = ""
        if code < 0:
            name = signal.Signals(-code).name
            cause = " (out of memory, most often)" if name == "SIGKILL" else ""
            what = f"the training process was ended by the system with {name}{cause}, {at}"
            if cause:
                known = files.read_json(here.ticket, {}).get("parameterization")
                other = "" if known and chain.Layer.of(known, stage).quantized else " or use qlora"
                memory = f"; to need less memory lower per_device_train_batch_size{other}"
        else:
            what = f"the training process ended with code {code}, {at}"
        log = here.log if here.log.is_file() else self.dir.child_log
        remedy = f"run the same command again and it resumes{memory}; the log is {log}"
        return AlignError(what, remedy, exit=Exit.STAGE_FAILED)
