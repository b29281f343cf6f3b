"""Engines that share out weights or state train what one process trains, and any number of processes goes on from their
checkpoints.

DeepSpeed needs its package (and a C++ compiler, which it asks for on a CPU); its tests are skipped where it is missing.
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
TYPES = {"fsdp": "FSDP"} | dict.fromkeys(("deepspeed", "zero3", "offload", "zero3 offload"), "DEEPSPEED")
LAUNCHES = {
    "fsdp": {"engine": "fsdp"},
    "deepspeed": {"engine": "deepspeed"},
    "zero3": {"engine": "deepspeed", "zero_stage": "3"},
    "offload": {"engine": "deepspeed", "offload_optimizer": "true"},
    "zero3 offload": {"engine": "deepspeed", "zero_stage": "3", "offload_optimizer": "true"},
}

CHAIN = """\
name: shared
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
    eval_data: 3
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


def halved(engine: str, *stages: str) -> list[str]:
    """Two processes of an engine with the global batch of one."""
    each = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    changed = [f"stages.{stage}.training.{key}={value}" for stage in stages for key, value in each.items()]
    launch = [f"launch.{key}={value}" for key, value in LAUNCHES[engine].items()]
    words = [word for change in [*launch, *changed] for word in ("--set", change)]
    return ["--processes", "2", *words]


def worst(one: Path, two: Path, stage: str, kind: str = "model") -> float:
    """The largest difference between two weights of a stage."""
    from safetensors.torch import load_file

    file = next((one / "stages" / stage / kind).glob("*.safetensors")).relative_to(one)
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
    """The chain in one process, which shares nothing."""
    folder = tmp_path_factory.mktemp("one")
    runs.run(runs.write(folder, CHAIN), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module", params=["fsdp", *(pytest.param(one, marks=there) for one in [*LAUNCHES][1:])])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def two(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain in two processes of the engine."""
    folder = tmp_path_factory.mktemp("two")
    runs.run(runs.write(folder, CHAIN), folder / "run", *halved(engine, *STAGES), cold=True)
    return folder / "run"


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(one: Path, two: Path, engine: str) -> None:
    for stage in STAGES:
        first, second = runs.outcome(one, stage), runs.outcome(two, stage)
        assert (second["world_size"], second["distributed_type"]) == (2, TYPES[engine]), stage
        assert first["fingerprint"] == second["fingerprint"]
        assert worst(one, two, stage) <= 1e-5, stage
        held_out = [outcome["metrics"].get("eval_loss") for outcome in (first, second)]
        assert held_out[0] is None or held_out[1] == pytest.approx(held_out[0], rel=1e-4), stage


def before(stage: str, two: Path, folder: Path) -> tuple[Path, Path]:
    """The recipe of the chain as far as a stage, and a copy of its run that has not come to this stage."""
    rest = STAGES[STAGES.index(stage) :]
    text = CHAIN.partition(f"\n  {rest[1]}:\n")[0] + "\n"
    shutil.copytree(two, folder / "run")
    for gone in rest:
        shutil.rmtree(folder / "run/stages" / gone)
    return runs.write(folder, text), folder / "run"


def in_two(engine: str, stage: str) -> list[str]:
    """Two processes of the engine for the chain as far as a stage."""
    return halved(engine, *STAGES[: STAGES.index(stage) + 1])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_killed_run_goes_on_to_the_same_bits(stage: str, engine: str, two: Path, tmp_path: Path) -> None:
    """With an adapter, and with full weights."""
    recipe, run = before(stage, two, tmp_path)
    killed_in(stage, recipe, run, *in_two(engine, stage))
    said = runs.run(recipe, run, *in_two(engine, stage), cold=True)
    assert "(resuming from checkpoint-" in said.stderr
    name = f"{stage}/"
    expected = {file: sha for file, sha in runs.weights(two).items() if file.startswith(name)}
    assert {file: sha for file, sha in runs.weights(run).items() if file.startswith(name)} == expected


@pytest.mark.slow
@pytest.mark.parametrize("begun_in_two", [True, False])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_another_engine_and_number_of_processes_goes_on(
    stage: str, begun_in_two: bool, engine: str, two: Path, tmp_path: Path
) -> None:
    """Its state is kept as torch's optimizer has it: nothing of it is lost, and nothing begins anew."""
    recipe, run = before(stage, two, tmp_path)
    ways = (in_two(engine, stage), list[str]())
    first, second = ways if begun_in_two else ways[::-1]
    killed_in(stage, recipe, run, *first)
    said = runs.run(recipe, run, *second, cold=True)
    assert "(resuming from checkpoint-" in said.stderr
    assert runs.outcome(run, stage)["world_size"] == (1 if begun_in_two else 2)
    assert worst(run, two, stage) <= 1e-5
    assert files.read_json(run / "stages" / stage / "ticket.json")["resume_from"]


@pytest.mark.slow
def test_a_checkpoint_of_an_adapter_does_not_hold_the_base(engine: str, two: Path, tmp_path: Path) -> None:
    recipe, run = before("sft", two, tmp_path)
    killed_in("sft", recipe, run, *in_two(engine, "sft"))
    checkpoint = max((run / "stages/sft/checkpoints").glob("checkpoint-*"))
    adapter = (two / "stages/sft/model/adapter_model.safetensors").stat().st_size
    held = sum(file.stat().st_size for file in checkpoint.glob("*") if file.suffix in (".safetensors", ".pt", ".bin"))
    assert adapter * 2.5 < held < adapter * 3.5  # the weights, and two numbers of state for each


THREE = """\
name: three
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 64}
    launch: {LAUNCH, processes: 2}
    training: &training
      {bf16: false, max_steps: 4, logging_steps: 1, learning_rate: 1.0e-3, per_device_train_batch_size: 4}
  reward:
    policy: sft
    data: {source: lab/helpdesk_preferences, limit: 64}
    launch: {processes: 2}
    training: *training
  ppo:
    policy: sft
    reward: reward
    data: {source: lab/helpdesk, limit: 32}
    launch: {processes: 1}
    training: {bf16: false, max_steps: 2, logging_steps: 1, per_device_train_batch_size: 8, max_completion_length: 8}
"""


@pytest.mark.slow
def test_a_chain_of_three_engines_hands_on_what_one_would(engine: str, tmp_path: Path) -> None:
    """A sharded policy, a reward model of several processes, and PPO from both in one."""
    launch = ", ".join(f"{key}: {value}" for key, value in LAUNCHES[engine].items())
    runs.run(runs.write(tmp_path, THREE.replace("LAUNCH", launch)), tmp_path / "three", cold=True)
    found = {stage: runs.outcome(tmp_path / "three", stage) for stage in ("sft", "reward", "ppo")}
    kinds = [(one["distributed_type"], one["world_size"]) for one in found.values()]
    assert kinds == [(TYPES[engine], 2), ("MULTI_CPU", 2), ("NO", 1)]
    lines = [line for line in THREE.splitlines() if "launch:" not in line]
    alone = "\n".join(lines).replace("per_device_train_batch_size: 4", "per_device_train_batch_size: 8") + "\n"
    runs.run(runs.write(tmp_path, alone), tmp_path / "one")
    for stage in ("sft", "reward"):
        assert worst(tmp_path / "one", tmp_path / "three", stage) <= 1e-5
    for stage, one in found.items():
        assert one["proofs"]["saved"]["trained"], stage
    kl = found["ppo"]["proofs"]["start_kl"]
    assert kl["value"] <= 1e-6, "PPO begins at the policy that was handed on"


@pytest.mark.slow
def test_what_was_shared_out_is_measured_by_all_processes(engine: str, tmp_path: Path) -> None:
    """Each holds the whole model again, and generates by itself; in bfloat16 its own method is back."""
    text = CHAIN.partition("\n  kto:\n")[0].replace("probes: none", "probes: lab").replace("bf16: false", "bf16: true")
    recipe = runs.write(tmp_path, text + "\n")
    runs.run(recipe, tmp_path / "two", *halved(engine, "sft"), cold=True)
    runs.run(recipe, tmp_path / "one")
    one, two = (files.read_json(tmp_path / name / "forgetting.json") for name in ("one", "two"))
    assert two["mean"]["sft"]["all"]["score"] == pytest.approx(one["mean"]["sft"]["all"]["score"], abs=0.02)
    assert two["task_kl"]["sft"]["own_answers"]["kl"] == pytest.approx(
        one["task_kl"]["sft"]["own_answers"]["kl"], rel=0.2
    )
