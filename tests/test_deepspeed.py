"""DeepSpeed's ZeRO-2 trains what one process trains, and any number of processes goes on from its checkpoints.

Needs the package deepspeed (and a C++ compiler, which it asks for on a CPU); skipped where it is missing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from pathlib import Path

import pytest

import runs
from align.run_folder import checkpoints, files

there = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")

CHAIN = """\
name: zero
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 64}
    eval_data: 8
    training: &training
      bf16: false
      max_steps: 6
      save_steps: 2
      logging_steps: 1
      learning_rate: 1.0e-3
      per_device_train_batch_size: 8
      gradient_checkpointing: true
  kto:
    policy: sft
    data: {source: lab/helpdesk_preferences, limit: 32}
    training: *training
  dpo:
    policy: kto
    parameterization: {method: full}
    data: &pairs {source: lab/helpdesk_preferences, limit: 64}
    training: *training
  reward:
    policy: sft
    data: *pairs
    eval_data: 8
    training: *training
  judge:
    stage: reward
    policy: sft
    parameterization: {method: full}
    data: *pairs
    training: *training
"""
STAGES = ("sft", "kto", "dpo", "reward", "judge")
ENGINE = ("--set", "launch.engine=deepspeed")


def halved(*stages: str) -> list[str]:
    """Two processes with the global batch of one."""
    each = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    changed = [f"stages.{stage}.training.{key}={value}" for stage in stages for key, value in each.items()]
    return ["--processes", "2", *(word for change in changed for word in ("--set", change))]


def worst(one: Path, two: Path, stage: str) -> float:
    """The largest difference between two weights of a stage."""
    from safetensors.torch import load_file

    file = next((one / "stages" / stage / "model").glob("*.safetensors")).relative_to(one)
    first, second = load_file(one / file), load_file(two / file)
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def killed_in(stage: str, recipe: Path, run: Path, *arguments: str) -> None:
    """A run whose child is killed, all its processes, once a stage has written a checkpoint."""
    process = runs.started(recipe, run, *arguments)
    here = run / "stages" / stage / "checkpoints"
    runs.wait_for(process, lambda: any(here.glob(f"*/{checkpoints.COMPLETE}")), seconds=600)
    launcher = runs.children(process.pid)
    for pid in [rank for child in launcher for rank in runs.children(child)] + launcher:  # each in a session of its own
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == 1
    assert not (run / "stages" / stage / "outcome.json").exists()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain in one process, without DeepSpeed."""
    folder = tmp_path_factory.mktemp("one")
    runs.run(runs.write(folder, CHAIN), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain in two processes of DeepSpeed."""
    folder = tmp_path_factory.mktemp("two")
    runs.run(runs.write(folder, CHAIN), folder / "run", *ENGINE, *halved(*STAGES), cold=True)
    return folder / "run"


@there
@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(one: Path, two: Path) -> None:
    for stage in STAGES:
        first, second = runs.outcome(one, stage), runs.outcome(two, stage)
        assert (second["world_size"], second["distributed_type"]) == (2, "DEEPSPEED"), stage
        assert first["fingerprint"] == second["fingerprint"]
        assert worst(one, two, stage) <= 1e-5, stage


def before(stage: str, two: Path, folder: Path) -> tuple[Path, Path]:
    """The recipe of the chain as far as a stage, and a copy of its run that has not come to this stage."""
    rest = STAGES[STAGES.index(stage) :]
    text = CHAIN.partition(f"\n  {rest[1]}:\n")[0] + "\n"
    shutil.copytree(two, folder / "run")
    for gone in rest:
        shutil.rmtree(folder / "run/stages" / gone)
    return runs.write(folder, text), folder / "run"


def in_two(stage: str) -> tuple[str, ...]:
    """Two processes of DeepSpeed for the chain as far as a stage."""
    return (*ENGINE, *halved(*STAGES[: STAGES.index(stage) + 1]))


@there
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_killed_run_goes_on_to_the_same_bits(stage: str, two: Path, tmp_path: Path) -> None:
    """With an adapter, and with full weights."""
    recipe, run = before(stage, two, tmp_path)
    killed_in(stage, recipe, run, *in_two(stage))
    said = runs.run(recipe, run, *in_two(stage), cold=True)
    assert "(resuming from checkpoint-" in said.stderr
    name = f"{stage}/"
    expected = {file: sha for file, sha in runs.weights(two).items() if file.startswith(name)}
    assert {file: sha for file, sha in runs.weights(run).items() if file.startswith(name)} == expected


@there
@pytest.mark.slow
@pytest.mark.parametrize("begun_by_deepspeed", [True, False])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_another_engine_and_number_of_processes_goes_on(
    stage: str, begun_by_deepspeed: bool, two: Path, tmp_path: Path
) -> None:
    """Its state is kept as torch's optimizer has it: nothing of it is lost, and nothing begins anew."""
    recipe, run = before(stage, two, tmp_path)
    ways = (in_two(stage), ())
    first, second = ways if begun_by_deepspeed else ways[::-1]
    killed_in(stage, recipe, run, *first)
    said = runs.run(recipe, run, *second, cold=True)
    assert "(resuming from checkpoint-" in said.stderr
    assert runs.outcome(run, stage)["world_size"] == (1 if begun_by_deepspeed else 2)
    assert worst(run, two, stage) <= 1e-5
    assert files.read_json(run / "stages" / stage / "ticket.json")["resume_from"]
