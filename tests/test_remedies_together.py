"""Every remedy in one chain: it ends with the same weights after two kills, and with two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import runs
from test_resume import kill_child, kill_parent

CHECK = "def right(completion):\n    return completion.endswith('.')\n"
RECIPE = """\
name: together
seed: 3
model: {base: lab, dtype: float32}
pipeline: sft_dpo
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 64}
    rewrite: {by: self, accept: "./check.py:right", samples: 1, max_new_tokens: 24}
    mask_above_perplexity: 5
    kl_coef: 0.2
    ewc: {data: {source: lab/general, limit: 40}, rows: 8}
    l2_sp: 0.01
    replay: {ratio: 0.25, sources: [{self: {rows: 32, max_new_tokens: 24}}, {data: lab/general}]}
    training: {bf16: false, learning_rate: 1.0e-3, max_steps: 6, gradient_accumulation_steps: 2}
  dpo:
    data: {source: lab/helpdesk_preferences, limit: 32}
    ewc: {data: {source: lab/general, limit: 40}, rows: 8}
    ptx_coef: 0.5
    replay: {ratio: 0.3, sources: [{self: {rows: 24, max_new_tokens: 24}}, {data: lab/general}, {stage: sft}]}
    training: {bf16: false, learning_rate: 2.0e-4, max_steps: 4, gradient_accumulation_steps: 2}
"""
EVERY = ("per_device_train_batch_size=4", "save_steps=2", "logging_steps=1")
TWO = ("per_device_train_batch_size=2", "save_steps=2", "logging_steps=1")
LOGGED = {"sft": ("loss/kl", "loss/ewc", "loss/l2_sp"), "dpo": ("loss/ewc", "loss/ptx")}


def given(training: tuple[str, ...]) -> list[str]:
    return [part for stage in LOGGED for one in training for part in ("--set", f"stages.{stage}.training.{one}")]


def recipe(folder: Path) -> Path:
    (folder / "check.py").write_text(CHECK, encoding="utf-8")
    return runs.write(folder, RECIPE)


def logged(folder: Path, stage: str) -> list[dict[str, Any]]:
    text = (folder / f"stages/{stage}/metrics.jsonl").read_text(encoding="utf-8")
    return [entry for entry in map(json.loads, text.splitlines()) if "loss" in entry]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    runs.run(recipe(folder), folder / "run", *given(EVERY))
    return folder / "run"


@pytest.mark.slow
def test_each_of_them_acts(whole: Path) -> None:
    data = runs.outcome(whole, "sft")["data"]
    assert data["rewrite"]["rewritten"] > 0 and data["masked"]["masked_tokens"] > 0
    names = [[part["name"] for part in runs.outcome(whole, stage)["data"]["replay_sources"]] for stage in LOGGED]
    assert names == [["the policy itself", "lab/general"], ["the policy itself", "lab/general", "stage sft"]]
    for stage in LOGGED:
        kept = runs.outcome(whole, stage)["data"]
        written = next(part for part in kept["replay_sources"] if part["name"] == "the policy itself")
        assert written["rows"] == kept["self_replay"]["kept"] and written["replayed"] > 0
        assert runs.outcome(whole, stage)["fisher"]["rows"] == 8
        for name in LOGGED[stage]:
            values = [entry[name] for entry in logged(whole, stage)]
            assert all(value > 0 for value in values[2:]), f"{name}: the first step of the warm-up moves nothing"


@pytest.mark.slow
def test_killed_in_both_stages(whole: Path, tmp_path: Path) -> None:
    path, folder = recipe(tmp_path), tmp_path / "run"
    first = runs.started(path, folder, *given(EVERY))
    runs.wait_for(first, lambda: runs.last_step(folder, "sft") >= 3)
    kill_child(first)
    second = runs.started(path, folder, *given(EVERY))
    runs.wait_for(second, lambda: runs.last_step(folder, "dpo") >= 3)
    kill_parent(second)
    assert "(resuming from checkpoint-" in runs.run(path, folder, *given(EVERY)).stderr
    assert runs.weights(folder) == runs.weights(whole)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(whole: Path, tmp_path: Path) -> None:
    runs.run(recipe(tmp_path), tmp_path / "two", *given(TWO), "--processes", "2")
    for stage in LOGGED:
        one, two = runs.outcome(whole, stage), runs.outcome(tmp_path / "two", stage)
        assert one["fingerprint"] == two["fingerprint"]
        if stage == "sft":
            assert one["fisher"]["sha256"] == two["fisher"]["sha256"], "of the same policy, bit for bit"
        for name in LOGGED[stage]:
            values = [[entry[name] for entry in logged(run, stage)] for run in (whole, tmp_path / "two")]
            assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-6), name
        file = f"stages/{stage}/model/adapter_model.safetensors"
        first, second = load_file(whole / file), load_file(tmp_path / "two" / file)
        assert max(float((first[key] - second[key]).abs().max()) for key in first) <= 1e-5
