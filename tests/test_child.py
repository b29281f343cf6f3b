"""The parent's end of the child: the sentence that each way of its death gets, and that nothing of it is left."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from align.errors import AlignError, Exit
from align.run_folder import files
from align.run_folder.launch import Launch, Place
from align.run_folder.paths import RunDir
from align.run_folder.records import Failure
from align.runner import child, launch
from align.runner.machines import Machines
from align.runner.progress import Watcher

SAID = "the training process was ended by the system with"
OFTEN = "(out of memory, most often)"
AGAIN = "run the same command again and it resumes"


class Ends:
    """A child that does what a line of shell says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dir, self.shell = RunDir(folder / "run"), "exit 0"
        self.here = self.dir.stage("sft")
        self.here.root.mkdir(parents=True)
        monkeypatch.setattr(launch, "start", self.start)
        self.launched: list[Launch] = []
        self.watcher = Watcher(Console(file=io.StringIO(), width=300))
        self.child = child.Child(self.dir, self.watcher, lambda: None, Machines(self.dir, Place(), "", print))

    def start(self, run: Path, launched: Launch, log: Path, place: Place) -> subprocess.Popen[bytes]:
        self.launched.append(launched)
        command = ["sh", "-c", self.shell]
        return subprocess.Popen(command, stdin=subprocess.PIPE, cwd=run, start_new_session=True)

    def execute(self, shell: str) -> AlignError:
        self.shell = shell
        self.watcher.begin("sft", self.here.metrics, self.here.progress)
        with pytest.raises(AlignError) as error:
            self.child.execute("sft", Launch())
        self.child.end()
        return error.value


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ends:
    return Ends(tmp_path, monkeypatch)


@pytest.mark.parametrize(("method", "more"), [("lora", " or use qlora"), ("full", " or use qlora"), ("qlora", "")])
def test_a_killed_child_needs_less_memory(method: str, more: str, ends: Ends) -> None:
    files.write_json(ends.here.ticket, {"parameterization": {"method": method}})
    memory = f"; to need less memory lower per_device_train_batch_size{more}"
    error = ends.execute("kill -KILL $$")
    assert error.exit == Exit.STAGE_FAILED
    assert (error.what, error.remedy) == (
        f"{SAID} SIGKILL {OFTEN}, at the start of stage 'sft'",
        f"{AGAIN}{memory}; the log is {ends.dir.child_log}",
    )


def test_a_crash_is_no_matter_of_memory(ends: Ends) -> None:
    """And it is told where the run was, and where its log is."""
    ends.here.log.touch()
    error = ends.execute(
        """echo '{"time": 4e9, "step": 7, "max_steps": 9}' > stages/sft/metrics.jsonl; kill -SEGV $$"""
    )
    assert (error.what, error.remedy) == (
        f"{SAID} SIGSEGV, at step 7 of stage 'sft'",
        f"{AGAIN}; the log is {ends.here.log}",
    )


def test_a_child_that_leaves_without_a_word(ends: Ends) -> None:
    error = ends.execute("exit 5")
    assert error.what == "the training process ended with code 5, at the start of stage 'sft'"
    assert error.remedy == f"{AGAIN}; the log is {ends.dir.child_log}"


@pytest.mark.parametrize(
    ("traceback", "remedy"),
    [
        ("", "free some room"),
        ("Traceback ...", "the traceback is in {}; fix the cause and run the same command again"),
    ],
)
def test_what_a_stage_says_of_itself_goes_first(traceback: str, remedy: str, ends: Ends) -> None:
    wrong = {"what": "the disk is full", "remedy": "free some room", "exit": 4, "traceback": traceback}
    files.write_json(ends.here.error, wrong)
    error = ends.execute("kill -KILL $$")
    assert (error.what, error.remedy, error.exit) == (
        "the disk is full",
        remedy.format(ends.here.log),
        Exit.MACHINE,
    )


def test_a_child_that_was_stopped_is_no_failure(ends: Ends) -> None:
    ends.shell = f"exit {Exit.INTERRUPTED.value}"
    with pytest.raises(KeyboardInterrupt):
        ends.child.execute("sft", Launch())
    ends.child.end()


def test_an_outcome_that_was_written_counts_whatever_became_of_the_child(ends: Ends) -> None:
    files.write_json(ends.here.outcome, {"status": "done"})
    ends.shell = "kill -KILL $$"
    ends.child.execute("sft", Launch())
    ends.child.end()


def test_a_queue_of_an_earlier_child_is_not_read(ends: Ends) -> None:
    files.write_text(ends.dir.stop, "")
    files.write_json(ends.dir.queue / "2.json", {"do": "finish"})
    ends.execute("until test -e .queue/1.json; do sleep 0.02; done; ls .queue > seen; exit 5")
    assert (ends.dir.root / "seen").read_text() == "1.json\n"
    assert not ends.dir.queue.exists(), "nor is one left"


def test_one_child_executes_all_stages_and_no_process_is_left(ends: Ends) -> None:
    ends.shell = """
    until test -e .queue/1.json; do sleep 0.02; done; echo '{"pid": '$$'}' > stages/sft/outcome.json
    until test -e .queue/2.json; do sleep 0.02; done; echo '{"pid": '$$'}' > stages/dpo/outcome.json
    cat
    """
    ends.dir.stage("dpo").root.mkdir()
    for stage in ("sft", "dpo"):
        ends.child.execute(stage, Launch())
    first, second = (files.read_json(ends.dir.stage(stage).outcome)["pid"] for stage in ("sft", "dpo"))
    assert first == second
    ends.child.end()  # the end of its pipe tells it that the parent is gone
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_another_launch_gets_another_child_and_the_first_ends_in_order(ends: Ends) -> None:
    ends.shell = """
    until test -e .queue/1.json; do sleep 0.02; done; stage=sft; test -e stages/sft/outcome.json && stage=dpo
    echo '{"pid": '$$'}' > stages/$stage/outcome.json
    until test -e .queue/2.json; do sleep 0.02; done; cp .queue/2.json $stage.end
    """
    ends.dir.stage("dpo").root.mkdir()
    ends.child.execute("sft", Launch())
    ends.child.execute("dpo", Launch(processes=2))
    first, second = (files.read_json(ends.dir.stage(stage).outcome)["pid"] for stage in ("sft", "dpo"))
    assert first != second
    assert files.read_json(ends.dir.root / "sft.end") == {"do": "finish"}
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    ends.child.finish()
    assert ends.launched == [Launch(), Launch(processes=2)]
    ends.child.end()


TAKES = "until test -e .queue/1.json; do sleep 0.02; done"


def test_each_stage_of_zero_3_gets_a_child_of_its_own(ends: Ends) -> None:
    shared = Launch(engine="deepspeed", zero_stage=3, processes=2)
    ends.shell = f"""
    {TAKES}; stage=sft; test -e stages/sft/outcome.json && stage=dpo
    echo '{{"pid": '$$'}}' > stages/$stage/outcome.json; until test -e .queue/2.json; do sleep 0.02; done
    """
    ends.dir.stage("dpo").root.mkdir()
    ends.child.execute("sft", shared)
    ends.child.execute("dpo", shared)
    first, second = (files.read_json(ends.dir.stage(stage).outcome)["pid"] for stage in ("sft", "dpo"))
    assert first != second and ends.launched == [shared, shared]
    ends.child.finish()
    ends.child.end()


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_child_that_fails_is_not_started_again(ends: Ends, zero_stage: int) -> None:
    ends.shell = f"{TAKES}; cp failed.json stages/sft/error.json; exit 5"
    files.write_json(
        ends.dir.root / "failed.json", Failure(what="it diverged", remedy="do", exit=int(Exit.STAGE_FAILED)).written()
    )
    with pytest.raises(AlignError, match="it diverged"):
        ends.child.execute("sft", Launch(engine="deepspeed", zero_stage=zero_stage, processes=2))
    assert len(ends.launched) == 1
    ends.child.end()


def test_to_be_stopped_a_child_must_be_there(ends: Ends) -> None:
    ends.child.interrupt()
    assert not ends.dir.stop.exists()
    ends.execute("exit 5")
    ends.child.interrupt()
    assert not ends.dir.stop.exists()
    assert isinstance(ends.watcher.console.file, io.StringIO) and ends.watcher.console.file.getvalue() == ""
