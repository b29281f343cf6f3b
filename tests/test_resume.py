"""kill -9 at the worst moments; the same command again ends with the weights of a run that was never killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import runs

RATES = {"full": "1.0e-4", "lora": "1.0e-3", "qlora": "1.0e-3", "spectrum": "1.0e-4", "adapter": "1.0e-3"}
SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in ("lora", "full", "spectrum", "adapter")]


def arguments(method: str) -> list[str]:
    return [
        "--set",
        f"parameterization={{method: {method}}}",
        "--set",
        f"stages.sft.training.learning_rate={RATES[method]}",
    ]


def kill_child(process: subprocess.Popen[str]) -> str:
    for pid in runs.children(process.pid):
        os.kill(pid, signal.SIGKILL)
    said = process.communicate()[0]
    assert process.returncode == 1, said
    return said


def kill_parent(process: subprocess.Popen[str]) -> None:
    """The child must end too, or it would go on writing beside the next one."""
    orphans = runs.children(process.pid)
    process.kill()
    process.communicate()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in orphans):
        assert time.monotonic() < end, "the child outlived its parent"
        time.sleep(0.05)


@pytest.mark.parametrize("method", ["qlora", *SLOW])
def test_killed_in_sft_in_a_checkpoint_and_in_dpo(method: str, tmp_path: Path) -> None:
    recipe, extra = runs.write(tmp_path), arguments(method)
    runs.run(recipe, tmp_path / "whole", *extra)
    folder = tmp_path / "killed"

    first = runs.started(recipe, folder, *extra)
    runs.wait_for(first, lambda: runs.last_step(folder, "sft") >= 5)
    said = kill_child(first)
    assert (
        "error the training process was ended by the system with SIGKILL (out of memory, most often), at step" in said
    )
    assert "  -> run the same command again and it resumes" in said

    torn = folder / "stages/sft/checkpoints/checkpoint-9"
    second = runs.started(recipe, folder, *extra)
    runs.wait_for(second, lambda: torn.is_dir() and not (torn / "complete.json").exists())
    kill_parent(second)

    third = runs.started(recipe, folder, *extra)
    runs.wait_for(third, lambda: runs.last_step(folder, "dpo") >= 3)
    kill_child(third)

    last = runs.run(recipe, folder, *extra)
    assert "sft: done already" in last.stderr
    assert "(resuming from checkpoint-2)" in last.stderr or "(resuming from checkpoint-4)" in last.stderr
    assert runs.weights(folder) == runs.weights(tmp_path / "whole")


@pytest.mark.slow
def test_killed_after_the_last_step_and_before_the_outcome(tmp_path: Path) -> None:
    """A trainer that goes on from its last checkpoint makes one step more than it should."""
    text = runs.RECIPE.replace("probes: none", "probes: lab").replace("pipeline: sft_dpo", "pipeline: sft")
    text = text.split("  dpo:")[0].replace("learning_rate", "lr_scheduler_type: constant, learning_rate")
    recipe, folder = runs.write(tmp_path, text), tmp_path / "killed"
    runs.run(recipe, tmp_path / "whole")
    process = runs.started(recipe, folder)
    runs.wait_for(process, lambda: (folder / "stages/sft/checkpoints/checkpoint-12/complete.json").is_file())
    kill_child(process)
    assert not (folder / "stages/sft/outcome.json").exists()
    assert "(resuming from checkpoint-12)" in runs.run(recipe, folder).stderr
    assert runs.weights(folder) == runs.weights(tmp_path / "whole")
    whole, killed = runs.outcome(tmp_path / "whole", "sft"), runs.outcome(folder, "sft")
    assert killed["steps"] == whole["steps"] == 12
    assert killed["metrics"]["train_loss"] == pytest.approx(whole["metrics"]["train_loss"])


@pytest.mark.slow
def test_a_redo_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    recipe, folder = (
        runs.write(tmp_path, runs.RECIPE.replace("pipeline: sft_dpo", "pipeline: sft").split("  dpo:")[0]),
        tmp_path / "run",
    )
    runs.run(recipe, folder)
    process = runs.started(recipe, folder, "--from", "sft")
    runs.wait_for(process, lambda: (folder / "superseded").exists() and 4 <= runs.last_step(folder, "sft") < 12)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 130
    assert "(resuming from checkpoint-" in runs.run(recipe, folder, "--from", "sft").stderr
    assert len(list((folder / "superseded").iterdir())) == 1
    assert "it is to run again" in runs.run(recipe, folder, "--from", "sft").stderr, "a finished one is asked for anew"


def test_ctrl_c_saves_and_goes_on(tmp_path: Path) -> None:
    recipe, folder = runs.write(tmp_path), tmp_path / "run"
    process = runs.started(recipe, folder)
    runs.wait_for(process, lambda: runs.last_step(folder, "sft") >= 4)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[0]
    assert process.returncode == 130, said
    assert "interrupted; run the same command again to resume" in said
    assert list((folder / "stages/sft/checkpoints").glob("checkpoint-*/complete.json"))
    again = runs.run(recipe, folder)
    assert "(resuming from checkpoint-" in again.stderr


def test_a_run_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    recipe, folder = runs.write(tmp_path), tmp_path / "run"
    process = runs.started(recipe, folder)
    try:
        runs.wait_for(process, lambda: (folder / "stages/sft/ticket.json").is_file())
        second = runs.run(recipe, folder, code=2)
        assert (
            f"error the run folder '{folder}' is in use by process {process.pid}\n"
            "  -> wait for it to end, or give another --run-dir"
        ) in second.stderr
    finally:
        process.kill()
        process.communicate()
