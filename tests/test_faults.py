"""Processes that die, leave, hang or are signalled, in real runs: what is said, how soon, and that nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import runs
from align.runner import processes

HERE = Path(__file__).parent
RECIPE = f"""\
name: faulty
seed: 3
model: {{base: lab, dtype: float32}}
parameterization: {{method: lora}}
forgetting: {{probes: PROBES}}
stages:
  sft:
    stage: {HERE / "faulty_stage.py"}
    data: {{source: lab/helpdesk, limit: 96}}
    training: {{bf16: false, learning_rate: 1.0e-3, max_steps: 12, per_device_train_batch_size: 4, save_steps: 4,
      logging_steps: 1}}
"""
AGAIN = "run the same command again and it resumes"
MEMORY = "; to need less memory lower per_device_train_batch_size or use qlora"


@dataclass
class Run:
    """A run of the recipe in a folder of its own, from the outside."""

    folder: Path
    processes: int
    said: str = ""
    seconds: float = 0.0  # from the fault to the end of all that train; the report is written after that
    whole: float = 0.0  # to the end of the command
    code: int | None = None

    @property
    def dir(self) -> Path:
        return self.folder / "run"

    def start(self, fault: str = "") -> subprocess.Popen[str]:
        probes = "lab" if fault.startswith("measuring") else "none"
        recipe = runs.write(self.folder, RECIPE.replace("PROBES", probes))
        extra = ["--processes", str(self.processes)] if self.processes > 1 else []
        if fault.startswith("evaluation"):
            extra += ["--set", "stages.sft.eval_data=16"]
        os.environ["FAULT"] = fault or "none:0:none"
        try:
            return runs.started(recipe, self.dir, *extra)
        finally:
            del os.environ["FAULT"]

    def go_wrong(self, fault: str, then: Callable[[subprocess.Popen[str]], None] = lambda _: None) -> None:
        """Run until the fault and what the test does then, and to the end of the command."""
        process = self.start(fault)
        rank = 0 if ":all:" in fault else int(fault.split(":")[1])
        runs.wait_for(process, (self.folder / f"tripped.{rank}").exists, 600)
        runs.wait_for(process, lambda: len(list(self.folder.glob("pid.*"))) == self.processes, 60)
        began = time.monotonic()
        then(process)
        pids = [int(path.read_text()) for path in self.folder.glob("pid.*")]
        assert len(pids) == self.processes
        while process.poll() is None and not all(processes.is_gone(pid) for pid in pids):
            assert time.monotonic() - began < 300
            time.sleep(0.05)
        self.seconds = time.monotonic() - began
        self.said, _ = process.communicate(timeout=600)
        self.whole, self.code = time.monotonic() - began, process.returncode
        assert all(processes.is_gone(pid) for pid in pids), "an orphan"
        print(self.processes, fault, self.code, f"{self.seconds:.1f} s, {self.whole:.1f} s with the report", self.said)

    def finish(self, fault: str) -> None:
        """Run to the end; of a fault, whose rank there is not, only what is measured counts."""
        process = self.start(fault)
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said

    @property
    def error(self) -> str:
        """What the command ended with, without the lines before."""
        return self.said[self.said.index("error ") :].strip()

    def log(self, rank: int) -> Path:
        return self.dir / "stages/sft" / ("log.txt" if rank == 0 else f"log.rank{rank}.txt")


def died(run: Run, rank: int, code: int, at: str) -> str:
    """The sentence on a rank that said nothing."""
    how = "was ended by the system with SIGKILL (out of memory, most often)" if code else "ended with code 0"
    who = f"rank {rank} of {run.processes}" if run.processes > 1 else "the training process"
    memory = MEMORY if code else ""
    return f"error {who} {how}, {at}\n  -> {AGAIN}{memory}; the log is {run.log(rank)}"


START, SIXTH = "at the start of stage 'sft'", "at step 6 of stage 'sft'"
DEATHS = [
    ("step:1:kill", 2, -9, SIXTH),
    ("step:0:kill", 2, -9, SIXTH),
    ("start-up:1:kill", 2, -9, START),
    ("saving:1:kill", 2, -9, "while it saved the checkpoint of step 4 of stage 'sft'"),
    ("measuring:1:kill", 2, -9, "while it measured the probes, in stage 'sft'"),
    ("step:1:exit", 2, 0, SIXTH),
    ("step:0:kill", 1, -9, SIXTH),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "count", "code", "at"), DEATHS, ids=[f"{fault.replace(':', '_')}_{count}" for fault, count, *_ in DEATHS]
)
def test_a_rank_that_dies_ends_all(fault: str, count: int, code: int, at: str, tmp_path: Path) -> None:
    run = Run(tmp_path, count)
    run.go_wrong(fault)
    assert run.code == 1
    assert run.error == died(run, int(fault.split(":")[1]), code, at)
    assert run.seconds < 60, "the launcher of several processes would wait for half a minute by itself"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("raise", "failed{}: ValueError: the rows are upside down"),
        ("leave", "failed: {} was ended with sys.exit(0) before the stage was done"),
    ],
    ids=["raise", "leave"],
)
def test_a_rank_that_fails_says_why(kind: str, what: str, count: int, tmp_path: Path) -> None:
    run, rank = Run(tmp_path, count), count - 1
    run.go_wrong(f"step:{rank}:{kind}")
    who = {("raise", 1): "", ("raise", 2): " in rank 1", ("leave", 1): "its process", ("leave", 2): "rank 1 of 2"}
    assert run.code == 1
    assert run.error == (
        f"error stage 'sft' {what.format(who[kind, count])}\n"
        f"  -> the traceback is in {run.log(rank)}; fix the cause and run the same command again"
    )
    assert "faulty_stage.py" in run.log(rank).read_text()
    assert run.seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "count", "at", "where"),
    [
        ("step:1:stop", 2, "after step 6 of stage 'sft'", "the process is stopped, as SIGSTOP does"),
        ("start-up:0:stop", 2, "at the start of stage 'sft'", "the process is stopped, as SIGSTOP does"),
        ("step:1:hang", 2, "after step 6 of stage 'sft'", "it is at {}/faulty_stage.py:"),
        ("step:0:hang", 1, "after step 6 of stage 'sft'", "it is at {}/faulty_stage.py:"),
    ],
    ids=["stop_step", "stop_start", "hang_two", "hang_one"],
)
def test_a_rank_that_hangs_is_found(fault: str, count: int, at: str, where: str, tmp_path: Path) -> None:
    run, rank = Run(tmp_path, count), int(fault.split(":")[1])
    run.go_wrong(fault)
    assert run.code == 1
    what, remedy = run.error.split("\n")
    who = f"rank {rank} of 2" if count == 2 else "the training process"
    assert what.startswith(f"error {who} hangs {at}: for ")
    assert f" s nothing of it was heard, and 60 s is its limit there; {where.format(HERE)}" in what
    assert remedy == f"  -> {AGAIN}; what each process was doing is in its log, {run.log(rank)}"
    if where.startswith("it is at"):
        assert ", line 4" in (log := run.log(rank).read_text()) and " in fault\n" in log
    assert run.seconds > 55, "a minute is the least"


# ---- signals ------------------------------------------------------------------------------------------------------


def to_parent(number: signal.Signals) -> Callable[[subprocess.Popen[str]], None]:
    return lambda process: process.send_signal(number)


def to_all(number: signal.Signals) -> Callable[[subprocess.Popen[str]], None]:
    """As a scheduler does that knows every process of a job, twice."""

    def send(process: subprocess.Popen[str]) -> None:
        for _ in range(2):
            for pid in processes.tree([process.pid]):
                os.kill(pid, number)
            time.sleep(0.2)

    return send


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], dict[str, str]]:
    """The weights of a run that nothing happens to."""

    @cache
    def made(count: int, fault: str) -> dict[str, str]:
        run = Run(tmp_path_factory.mktemp("whole"), count)
        run.finish(fault)
        return runs.weights(run.dir)

    return made


SIGNALS = [
    ("step", 1, to_parent(signal.SIGUSR1)),
    ("step", 2, to_parent(signal.SIGUSR2)),
    ("saving", 2, to_parent(signal.SIGHUP)),
    ("start-up", 2, to_parent(signal.SIGTERM)),
    ("step", 2, to_all(signal.SIGUSR1)),
    ("step", 2, to_all(signal.SIGTERM)),
    ("measuring", 2, to_all(signal.SIGUSR2)),
    ("start-up", 1, to_all(signal.SIGUSR1)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "count", "send"), SIGNALS, ids=[f"signal{n}" for n in range(len(SIGNALS))])
def test_a_signal_saves_and_leaves(
    phase: str,
    count: int,
    send: Callable[[subprocess.Popen[str]], None],
    tmp_path: Path,
    whole: Callable[[int, str], dict[str, str]],
) -> None:
    run = Run(tmp_path, count)
    run.go_wrong(f"{phase}:all:wait", send)
    assert run.code == 130, run.said
    assert run.said.endswith("interrupted; run the same command again to resume\n")
    sealed = sorted(path.parent.name for path in (run.dir / "stages/sft/checkpoints").glob("*/complete.json"))
    assert sealed == {
        "start-up": [],
        "step": ["checkpoint-4", "checkpoint-7"],
        "saving": ["checkpoint-4", "checkpoint-5"],
        "measuring": ["checkpoint-12", "checkpoint-8"],
    }.get(phase)
    measured = "measuring:9:none" if phase == "measuring" else ""
    run.finish(measured)
    assert runs.weights(run.dir) == whole(count, measured), "bit for bit"


@pytest.mark.slow
def test_a_folder_that_is_deleted_ends_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, 1)
    run.go_wrong("step:0:wait", lambda _: shutil.rmtree(run.dir))
    assert run.code == 1
    assert run.error == (
        f"error '{run.dir}' was deleted while the run was under way\n"
        "  -> run the same command again; it goes on from what is left"
    )
    assert run.seconds < 60
