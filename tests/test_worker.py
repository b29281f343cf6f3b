"""The child process: several tickets in one, every failure as a sentence, and no life without its parent."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from align.errors import AlignError, Exit
from align.run_folder import files, messages
from align.run_folder.launch import Launch
from align.run_folder.messages import Execute, Finish
from align.run_folder.paths import RunDir
from align.runner import launch
from align.stage.callbacks import Interrupted
from align.worker import __main__ as worker
from align.worker import execute as work
from models import BASE, LORA, Stages

STAGE = """
import os, time
from pathlib import Path
from align.stage import Stage

def train(job):
    print("this is", job.ticket.stage)
    if job.ticket.stage == "third":
        raise ValueError("the rows are upside down\\nand more of it")
    if job.ticket.stage == "endless":
        Path(__file__).with_name("started").touch()
        while True:
            time.sleep(0.01)
    return {"pid": float(os.getpid())}

STAGE = Stage(description="a stage of the tests", rows=frozenset({"chat"}), train=train)
"""


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    (tmp_path / "stage.py").write_text(STAGE)
    return Stages(RunDir(tmp_path / "run"))


@pytest.fixture
def child(stages: Stages) -> Iterator[subprocess.Popen[bytes]]:
    """A child that waits for its first ticket."""
    stages.run.root.mkdir()
    process = launch.start(stages.run.root, Launch(), stages.run.child_log)
    yield process
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def send(stages: Stages, number: int, id: str | None) -> None:
    """Put a ticket of the stage file above into the queue, or the end of the queue."""
    if id is None:
        messages.send(stages.run, number, Finish())
        return
    ticket = stages.ticket(id, str(stages.run.root.parent / "stage.py"), BASE, LORA)
    files.write_json(stages.run.stage(id).ticket, ticket.model_dump(mode="json"))
    messages.send(stages.run, number, Execute(stage=id))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the child ended with {process.returncode}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_two_tickets_and_then_an_exception(stages: Stages, child: subprocess.Popen[bytes]) -> None:
    send(stages, 1, "first")
    wait_for(stages.run.stage("first").outcome.is_file, child)
    send(stages, 2, "second")
    wait_for(stages.run.stage("second").outcome.is_file, child)
    send(stages, 3, "third")
    assert child.wait(timeout=60) == 1

    for id in ("first", "second"):
        outcome = json.loads(stages.run.stage(id).outcome.read_text())
        assert outcome["metrics"] == {"pid": child.pid}, "the same process did both"
        assert f"this is {id}\n" in stages.run.stage(id).log.read_text()
        assert not stages.run.stage(id).error.exists()
    assert "this is first" not in stages.run.stage("second").log.read_text()

    here = stages.run.stage("third")
    error = json.loads(here.error.read_text())
    trace = error.pop("traceback")
    assert error == {
        "what": "stage 'third' failed: ValueError: the rows are upside down",
        "remedy": "the traceback is in the log of the stage",
        "exit": 1,
        "rank": 0,
    }
    assert trace.startswith("Traceback (most recent call last):\n")
    assert f'File "{stages.run.root.parent / "stage.py"}", line 9, in train\n' in trace
    assert trace.endswith("ValueError: the rows are upside down\nand more of it\n")
    assert trace in here.log.read_text()
    assert not here.outcome.exists()


def test_a_child_at_work_ends_with_its_parent(stages: Stages, child: subprocess.Popen[bytes]) -> None:
    send(stages, 1, "endless")
    wait_for((stages.run.root.parent / "started").exists, child)
    assert child.stdin is not None
    child.stdin.close()  # as the system does when the parent dies
    assert child.wait(timeout=5) == 1
    assert not stages.run.stage("endless").outcome.exists()


def test_a_waiting_child_ends_with_its_parent(stages: Stages, child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(timeout=10) == 1


def test_the_end_of_the_queue(stages: Stages, child: subprocess.Popen[bytes]) -> None:
    send(stages, 1, None)
    assert child.wait(timeout=10) == 0


def test_a_waiting_child_that_is_asked_to_stop(stages: Stages, child: subprocess.Popen[bytes]) -> None:
    deaf = 1 << (signal.SIGTERM - 1)
    wait_for(lambda: bool(_caught(child.pid) & deaf), child)
    child.terminate()
    assert child.wait(timeout=10) == 130


def _caught(pid: int) -> int:
    """The signals for which a process has a handler, as a mask."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return int(line.split()[1], 16)
    return 0


def test_a_stack_that_cannot_be_imported(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = stages.run.root.parent / "broken" / "torch.py"
    files.write_text(broken, 'raise ImportError("libcudart.so.13: cannot open shared object file")\n')
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    stages.run.root.mkdir()
    send(stages, 1, "first")
    with launch.start(stages.run.root, Launch(), stages.run.child_log) as process:
        assert process.wait(timeout=30) == 4
    assert json.loads(stages.run.stage("first").error.read_text()) == {
        "what": "the training stack cannot be imported: libcudart.so.13: cannot open shared object file",
        "remedy": "make install, or pip install align-suite",
        "exit": 4,
        "traceback": None,
        "rank": 0,
    }


# What a stage may raise, in this process -------------------------------------------------------------------------


def execute(stages: Stages, monkeypatch: pytest.MonkeyPatch, raising: Callable[[], Any]) -> tuple[int, Any]:
    """Exit code and error.json of a stage that does this."""
    monkeypatch.setattr(worker, "redirect", lambda here: here.root.mkdir(parents=True))
    monkeypatch.setattr(work, "do", lambda *_: raising())
    code = worker.execute_ticket(stages.run, stages.ticket("sft", "sft", BASE, models.FULL))
    return code, files.read_json(stages.run.stage("sft").error)


def full_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.15 GiB in total.")


def full_cpu() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def full_python() -> None:
    raise MemoryError


@pytest.mark.parametrize("raising", [full_gpu, full_cpu, full_python])
def test_out_of_memory_says_what_to_do(
    raising: Callable[[], None], stages: Stages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = execute(stages, monkeypatch, raising)
    assert code == 1
    assert error == {
        "what": "stage 'sft' ran out of memory before or after its training",
        "remedy": "use qlora, choose a smaller base, or end what else takes memory there",
        "exit": 1,
        "traceback": None,  # the way out is shown in place of the log
        "rank": 0,
    }
    assert "Traceback (most recent call last)" in capsys.readouterr().err, "it is in the log all the same"


def expected() -> None:
    raise AlignError("the tokenizer of the base has no end token", "set eos_token", exit=Exit.BAD_INPUT)


def test_an_expected_failure_keeps_its_sentence(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = execute(stages, monkeypatch, expected)
    assert code == 2
    assert error == {
        "what": "the tokenizer of the base has no end token",
        "remedy": "set eos_token",
        "exit": 2,
        "traceback": None,
        "rank": 0,
    }
    assert "Traceback" not in capsys.readouterr().err


def tensor_bytes() -> int:
    """Of all tensors that are there, each storage once; of those that are never looked through for garbage too."""
    gc.unfreeze()
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if type(one) in (torch.Tensor, torch.nn.Parameter)
    }
    return sum(storages.values())


def test_nothing_of_a_stage_is_held_while_the_next_ones_train(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model, gradients and optimizer stand in cycles: what is not collected then is there as long as the worker."""
    worker._import_stack()
    gc.unfreeze()  # what earlier tests left is not of these stages
    gc.collect()
    held: list[int] = []
    free = work._free

    def counted() -> None:
        free()
        held.append(tensor_bytes())

    monkeypatch.setattr(worker, "redirect", lambda here: here.root.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(work, "_free", counted)
    for id in ("first", "second"):
        ticket = stages.ticket(id, "sft", BASE, models.FULL, max_steps=2, keys={"kl_coef": 0.1})
        assert worker.execute_ticket(stages.run, ticket) == Exit.DONE
    monkeypatch.setattr(work, "build", lambda _: expected())
    assert worker.execute_ticket(stages.run, stages.ticket("third", "sft", BASE, models.FULL)) == Exit.BAD_INPUT
    before, trained, second, trained_again, third = held
    model = sum(file.stat().st_size for file in Path(BASE.base.path).glob("*.safetensors"))
    assert trained - before > 0.9 * model, "the policy is still measured and saved"
    assert abs(trained_again - trained) < 0.01 * model
    assert second - before < 0.01 * model and third - before < 0.01 * model


def stopped() -> None:
    raise Interrupted


def test_a_stage_that_was_asked_to_stop_is_no_failure(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    assert execute(stages, monkeypatch, stopped) == (130, None)


def test_a_very_small_model_takes_one_thread_unless_the_user_chose(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ticket = stages.ticket("sft", "sft", BASE, LORA)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    work.limit_threads(ticket)
    assert taken == [], "the user chose"
    monkeypatch.delenv("OMP_NUM_THREADS")
    work.limit_threads(ticket)
    assert taken == [1]
    monkeypatch.setattr(work, "ONE_THREAD_BYTES", 1_000_000)
    work.limit_threads(ticket)
    assert taken == [1], "two million parameters are more than that"


def test_a_stage_goes_on_in_the_precision_it_began_in(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of another kind too, where a new stage would be trained in the other one."""

    def execute(id: str, here: bool, resume_from: str | None = None) -> dict[str, torch.Tensor]:
        monkeypatch.setattr("align.policy.load.native_bf16", lambda: here)
        ticket = stages.ticket(id, "sft", BASE, LORA, save_strategy="steps", save_steps=2)
        ticket.resume_from = resume_from
        stages.execute(ticket)
        return models.tensors(stages.jobs[id].model)

    begun = execute("begun", here=False)
    resumed = execute("begun", here=True, resume_from="checkpoints/checkpoint-2")
    other = execute("other", here=True)
    assert all(torch.equal(begun[name], resumed[name]) for name in begun)
    assert any(not torch.equal(begun[name], other[name]) for name in begun)
