"""Several processes, of which one dies, fails, leaves or stops: who it was, what is said, and that all are ended.

Shells in place of a launcher and of the processes that train.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from align.errors import AlignError
from align.run_folder import files
from align.run_folder.launch import Launch, Place
from align.run_folder.messages import Execute
from align.run_folder.paths import RunDir
from align.run_folder.records import Failure
from align.runner import child, hung, launch, processes, signals, supervise
from align.runner.machines import Machines
from align.runner.progress import Watcher

BEGIN = """
mkdir -p .queue/heartbeats
sleep 60 & one=$!
sleep 60 & two=$!
beat() {
    echo '{"rank": '$1', "world": 2, "pid": '$2', "host": "'HOST'", "phase": "'$3'", "stage": "sft", "step": 3,' \
        '"left": '${4:-null}', "count": '$2'}' > .queue/heartbeats/$1.json
}
beat 0 $one step
beat 1 $two step
echo $one $two > pids
until test -e .queue/1.json; do sleep 0.02; done
""".replace("HOST", socket.gethostname())
LAUNCHER = """
wait $one
echo "E failed (exitcode: CODE) local_rank: 1 (pid: $WHO) of binary: python" >> child.log
exit 1
"""
MEMORY = "; to need less memory lower per_device_train_batch_size or use qlora"


class Two:
    """A child of two processes, made by lines of shell."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dir = RunDir(folder / "run")
        self.here = self.dir.stage("sft")
        self.here.root.mkdir(parents=True)
        (self.dir.root / ".lock").touch()
        files.write_json(self.here.ticket, {"parameterization": {"method": "lora"}})
        monkeypatch.setattr(launch, "start", self.start)
        self.watcher = Watcher(Console(file=io.StringIO(), width=300))
        self.child = child.Child(self.dir, self.watcher, lambda: None, Machines(self.dir, Place(), "", print))
        self.shell = ""

    def start(self, run: Path, launched: Launch, log: Path, place: Place) -> subprocess.Popen[bytes]:
        command = ["sh", "-c", BEGIN + self.shell]
        return subprocess.Popen(command, stdin=subprocess.PIPE, cwd=run, start_new_session=True)

    def fails(self, rank: int, what: str, **more: object) -> str:
        """A line of shell after which a process has said why it failed."""
        failure = Failure.model_validate({"what": what, "exit": 1, "rank": rank, **more})
        files.write_json(self.dir.root / f"failure.{rank}", failure.written())
        return f"cp failure.{rank} {self.here.error_of(rank)}\n"

    def execute(self, shell: str) -> tuple[str, str]:
        self.shell = shell
        self.watcher.begin("sft", self.here.metrics, self.here.progress)
        try:
            with pytest.raises(AlignError) as error:
                self.child.execute("sft", Launch(processes=2))
        finally:
            self.child.end()
        pids = [int(pid) for pid in (self.dir.root / "pids").read_text().split()]
        assert all(processes.is_gone(pid) for pid in pids), "an orphan"
        return error.value.what, error.value.remedy


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Two:
    return Two(tmp_path, monkeypatch)


def ended(code: int, who: str = "two") -> str:
    """What the launcher does once the other process has ended too, for which it would wait half a minute."""
    return LAUNCHER.replace("CODE", str(code)).replace("WHO", who)


def test_a_rank_that_was_killed(two: Two) -> None:
    two.here.log_of(1).touch()
    what, remedy = two.execute("kill -KILL $two" + ended(-9))
    assert (what, remedy) == (
        "rank 1 of 2 was ended by the system with SIGKILL (out of memory, most often), at the start of stage 'sft'",
        f"run the same command again and it resumes{MEMORY}; the log is {two.here.root}/log.rank1.txt",
    )
    assert files.read_json(two.here.error) == {"what": what, "remedy": remedy, "exit": 1, "rank": 1}


def test_a_rank_that_was_killed_while_the_launcher_has_the_other_leave(two: Two) -> None:
    """The launcher sends SIGTERM to the others, which is what asks them to save and leave."""
    two.here.log_of(1).touch()
    what, _ = two.execute("kill -KILL $two; beat 0 $one step 130; kill $one" + ended(-9))
    assert what == (
        "rank 1 of 2 was ended by the system with SIGKILL (out of memory, most often), at the start of stage 'sft'"
    )


def test_a_rank_that_failed_while_the_launcher_has_the_other_leave(two: Two) -> None:
    failed = two.fails(1, "the rows are upside down", remedy="turn them")
    what, remedy = two.execute(failed + "beat 1 $two step 1; beat 0 $one step 130; kill $one $two" + ended(1))
    assert (what, remedy) == ("the rows are upside down", "turn them")


def test_a_rank_that_crashed_while_it_saved(two: Two) -> None:
    what, remedy = two.execute("beat 1 $two saving; kill -SEGV $two" + ended(-11))
    assert (what, remedy) == (
        "rank 1 of 2 was ended by the system with SIGSEGV, while it saved the checkpoint of step 3 of stage 'sft'",
        f"run the same command again and it resumes; the log is {two.dir.child_log}",
    )


def test_a_rank_that_left_too_early_without_a_word(two: Two) -> None:
    """The launcher says nothing of it, but of the other one, which was ended."""
    what, _ = two.execute("kill $two" + ended(-9, "one"))
    assert what == "rank 1 of 2 ended with code 0, at the start of stage 'sft'"


def test_one_that_only_lost_the_other_is_not_what_failed(two: Two) -> None:
    lost = two.fails(0, "stage 'sft' failed in rank 0: Connection closed by peer", secondhand=True, traceback="...")
    what, _ = two.execute(f"kill -KILL $two\n{lost} beat 0 $one step 1" + ended(-9))
    assert what.startswith("rank 1 of 2 was ended by the system with SIGKILL")


def test_the_first_that_failed_says_why(two: Two) -> None:
    wrong = two.fails(1, "stage 'sft' failed in rank 1: ValueError: upside down", traceback="Traceback ...")
    lost = two.fails(0, "stage 'sft' failed in rank 0: Connection closed by peer", secondhand=True, traceback="...")
    assert two.execute(f"{lost}{wrong} beat 1 $two step 1; beat 0 $one step 1; sleep 60") == (
        "stage 'sft' failed in rank 1: ValueError: upside down",
        f"the traceback is in {two.here.root}/log.rank1.txt; fix the cause and run the same command again",
    )
    assert files.read_json(two.here.error)["rank"] == 1, "as the report shows it"


def test_of_two_that_failed_the_earlier_one_is_told(two: Two) -> None:
    later, earlier = two.fails(0, "the second fault"), two.fails(1, "the first fault")
    assert two.execute(f"{earlier} sleep 0.1; {later} beat 1 $two step 1; sleep 60") == ("the first fault", "")


def test_a_failure_of_an_attempt_before_is_not_told_again(two: Two) -> None:
    files.write_json(two.here.error_of(1), {"what": "an old fault"})
    what, _ = two.execute("kill -KILL $two" + ended(-9))
    assert what.startswith("rank 1 of 2 was ended by the system with SIGKILL")


def test_a_launcher_that_is_killed_leaves_no_orphan(two: Two) -> None:
    what, remedy = two.execute("kill -KILL $$")
    assert (what, remedy) == (
        "the training process was ended by the system with SIGKILL (out of memory, most often), "
        "at the start of stage 'sft'",
        f"run the same command again and it resumes{MEMORY}; the log is {two.dir.child_log}",
    )


def test_a_rank_that_was_asked_to_leave_takes_the_others_with_it(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to one process alone; the other one waits for it."""
    monkeypatch.setattr(supervise, "LEAVING", 0.5)
    two.shell = "beat 1 $two step 130; sleep 60"
    with pytest.raises(KeyboardInterrupt):
        two.child.execute("sft", Launch(processes=2))
    two.child.interrupt()
    two.child.end()
    assert not two.here.error.exists()
    assert all(processes.is_gone(int(pid)) for pid in (two.dir.root / "pids").read_text().split())


def test_a_rank_that_is_stopped_hangs_in_whatever_phase(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "Listener", partial(hung.Listener, floor=1.2))
    what, remedy = two.execute("beat 0 $one start-up; beat 1 $two start-up; kill -STOP $two; sleep 60")
    assert (what, remedy) == (
        "rank 1 of 2 hangs at the start of stage 'sft': for 2 s nothing of it was heard, and 1 s is its limit there; "
        "the process is stopped, as SIGSTOP does",
        f"run the same command again and it resumes; what each process was doing is in its log, {two.dir.child_log}",
    )


def test_a_result_that_is_whole_is_not_thrown_away(two: Two) -> None:
    """A process that dies just after the outcome is written, between two looks."""
    two.shell = "kill -KILL $two" + ended(-9)
    two.watcher.begin("sft", two.here.metrics, two.here.progress)
    process, _ = two.child._started(Launch(processes=2))
    two.child._send(Execute(stage="sft"))
    process.wait()
    looks = iter([False, True, True])
    two.child._until(lambda: next(looks), "sft")
    two.child.end()
    assert not two.here.error.exists()


FORK = """
import multiprocessing, time
from align.worker import signals
signals.listen()
process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
process.start()
process.terminate()
process.join(10)
print(process.exitcode)
process.kill()
"""


def test_what_a_process_that_trains_has_forked_can_be_terminated() -> None:
    """A reward that runs code with a time limit, a pool that is closed: else they are waited for, for ever."""
    said = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    assert said.stdout == "-15\n"


@pytest.mark.parametrize("what", ["queue", "folder"])
def test_a_folder_that_is_deleted_is_not_waited_for(what: str, two: Two) -> None:
    (two.dir.root / "pids").touch()
    gone = two.dir.queue
    if what == "folder":
        (two.dir.root / ".lock").unlink()
        gone = two.dir.root
    assert two.execute("rm -r .queue; sleep 60") == (
        f"'{gone}' was deleted while the run was under way",
        "run the same command again; it goes on from what is left",
    )


def test_a_wish_to_stop_ends_when_all_have_left(two: Two) -> None:
    """And what kept the checkpoint from being saved is told."""
    full = two.fails(1, "'checkpoint-3' cannot be written: No space left on device")
    two.shell = f"until test -e .queue/stop; do sleep 0.02; done; {full} beat 1 $two step 4; sleep 60"

    def interrupt() -> None:
        raise KeyboardInterrupt

    two.child.meanwhile = interrupt
    with pytest.raises(KeyboardInterrupt):
        two.child.execute("sft", Launch(processes=2))
    two.child.interrupt()
    two.child.end()
    assert isinstance(two.watcher.console.file, io.StringIO)
    assert two.watcher.console.file.getvalue().splitlines() == [
        "stopping after this step, with a checkpoint; Ctrl-C again stops at once",
        "warning sft: no checkpoint was saved: 'checkpoint-3' cannot be written: No space left on device",
    ]


# ---- signals to the parent ----------------------------------------------------------------------------------------

PARENT = """
import os, signal, sys, time
from align.runner import signals
signals.listen()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    print("asked", flush=True)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_asks_once_and_a_second_ctrl_c_again(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "asked\n"
    assert process.returncode == 130


AT_ONCE = """
import os, signal
from align.runner import signals
signals.listen()
try:
    with signals.held():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
except KeyboardInterrupt:
    for _ in range(1000):
        pass
    print("asked")
"""


def test_signals_that_come_together_ask_once_and_print_nothing_else() -> None:
    said = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("asked\n", "")


def test_nohup_is_respected() -> None:
    command = ["sh", "-c", f"trap '' HUP; exec {sys.executable} -c '{PARENT}'"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.send_signal(signal.SIGUSR1)
        process.wait(timeout=10)


def test_what_is_started_holds_signals_back_and_the_parent_does_not() -> None:
    with signals.held():
        process = subprocess.Popen(["sleep", "60"])
    os.kill(process.pid, signal.SIGUSR1)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    process.kill()
    process.wait()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT}
