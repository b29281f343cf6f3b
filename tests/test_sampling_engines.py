"""Stages that sample answers train with ZeRO-2 what they train with DDP; skipped where DeepSpeed is missing."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

import runs
from test_sharing_engines import killed_in, worst

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]
STAGES = ("sdft", "grpo", "rloo", "whole", "ppo")
RECIPE = """\
name: sampled
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: none}
launch: {processes: 2}
stages:
  sdft:
    policy: base
    data: {source: lab/helpdesk, limit: 32}
    training: {bf16: false, learning_rate: 1.0e-3, max_steps: 4, per_device_train_batch_size: 4,
      max_completion_length: 12}
  grpo:
    policy: base
    parameterization: {method: full}
    data: &rows {source: lab/helpdesk, limit: 64}
    reward: ./own.py:short
    training: &training {bf16: false, learning_rate: 1.0e-4, max_grad_norm: 0.05, max_steps: 8, save_steps: 3,
      per_device_train_batch_size: 8, steps_per_generation: 2, num_iterations: 2, num_generations: 4,
      max_completion_length: 12, logging_steps: 1}
  rloo:
    policy: base
    data: *rows
    reward: ./own.py:short
    training: *training
  whole:
    stage: ppo
    policy: base
    parameterization: {method: full}
    data: *rows
    reward: ./own.py:short
    training: &ppo {bf16: false, learning_rate: 1.0e-3, max_grad_norm: 0.05, max_steps: 8, save_steps: 3,
      per_device_train_batch_size: 8, steps_per_generation: 2, num_iterations: 2, max_completion_length: 12,
      logging_steps: 1}
  ppo:
    policy: base
    data: *rows
    reward: ./own.py:short
    critic_warmup: 1
    target_kl: 0.002
    training: *ppo
"""
ENGINE = ("--set", "launch.engine=deepspeed")


def recipe(folder: Path) -> Path:
    (folder / "own.py").write_text(runs.OWN, encoding="utf-8")
    return runs.write(folder, RECIPE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with ZeRO-2."""
    folder = tmp_path_factory.mktemp("shared")
    runs.run(recipe(folder), folder / "run", *ENGINE, cold=True)
    return folder / "run"


def test_each_stage_ends_with_the_weights_of_ddp(shared: Path, tmp_path: Path) -> None:
    """Also where policy and critic are clipped, the critic warms up alone, and updates are left out."""
    runs.run(recipe(tmp_path), tmp_path / "run", cold=True)
    for stage in STAGES:
        assert runs.outcome(shared, stage)["distributed_type"] == "DEEPSPEED"
        assert runs.outcome(tmp_path / "run", stage)["distributed_type"] == "MULTI_CPU"
        assert worst(shared, tmp_path / "run", stage) <= 1e-5, stage
    for stage in ("whole", "ppo"):
        assert worst(shared, tmp_path / "run", stage, "critic") <= 1e-5, stage


@pytest.mark.parametrize("stage", ["rloo", "ppo"])
def test_a_killed_stage_goes_on_to_the_same_bits(stage: str, shared: Path, tmp_path: Path) -> None:
    """From a checkpoint in the middle of a rollout."""
    shutil.copytree(shared, tmp_path / "run")
    for gone in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(tmp_path / "run/stages" / gone)
    killed_in(stage, recipe(tmp_path), tmp_path / "run", *ENGINE)
    said = runs.run(recipe(tmp_path), tmp_path / "run", *ENGINE, cold=True)
    assert "(resuming from checkpoint-" in said.stderr
    expected = {file: sha for file, sha in runs.weights(shared).items() if file.startswith(f"{stage}/")}
    assert {file: sha for file, sha in runs.weights(tmp_path / "run").items() if file in expected} == expected
