"""SFT, a reward model and PPO through the real command: what runs again, what is compared, and the shipped recipes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import runs
from align.rl import rollouts

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copy(rlhf: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to be changed."""
    recipe, run = rlhf
    shutil.copy(recipe.parent / "own.py", tmp_path / "own.py")
    shutil.copytree(run, tmp_path / "run")
    return Path(shutil.copy(recipe, tmp_path / "small.yaml")), tmp_path / "run"


def done_already(said: str) -> set[str]:
    return {line.partition(":")[0] for line in said.splitlines() if line.endswith(": done already")}


def test_what_a_run_writes(rlhf: tuple[Path, Path]) -> None:
    run = rlhf[1]
    reward, ppo = runs.outcome(run, "reward"), runs.outcome(run, "ppo")
    assert reward["policy"] is None and [one["name"] for one in reward["reward"]["adapters"]] == ["sft", "reward"][1:]
    assert reward["data"]["eval_rows"] == 16 and 0 <= reward["metrics"]["pair_accuracy"] <= 1
    assert {"score_first", "score_last", "kl", "kl_target", "explained_variance", "alarms"} <= ppo["metrics"].keys()
    found = rollouts.read(run / "stages/ppo/rollouts.jsonl")
    assert [one.number for one in found] == [1, 2, 3] and found[0].kl == 0.0
    assert set(found[0].rewards) == {"reward", "short"}
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["stages"]["ppo"]["inputs"] == {"policy": "sft", "reward": ["reward"]}
    assert (run / "stages/ppo/critic/critic.safetensors").is_file()


def test_the_branches_are_compared(rlhf: tuple[Path, Path]) -> None:
    found = json.loads((rlhf[1] / "comparison.json").read_text(encoding="utf-8"))
    assert set(found["stages"]) == {"sft", "dpo", "ppo"} and found["parent"] == "sft"
    assert found["stages"]["sft"]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["prompts"] == {"of": "reward", "held_out": True, "count": found["prompts"]["count"]}
    assert found["prompts"]["count"] >= 10


def test_the_same_command_again_runs_nothing(copy: tuple[Path, Path]) -> None:
    before = (copy[1] / "comparison.json").stat().st_mtime_ns
    said = runs.run(*copy).stderr
    assert done_already(said) == {"sft", "dpo", "reward", "ppo"}
    assert (copy[1] / "comparison.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_another_reward_model_runs_it_and_ppo_again(copy: tuple[Path, Path]) -> None:
    recipe, run = copy
    before = runs.weights(run)
    said = runs.run(recipe, run, "--set", "stages.reward.training.learning_rate=5.0e-4").stderr
    assert done_already(said) == {"sft", "dpo"}
    assert {name for name, sha in runs.weights(run).items() if before[name] != sha} == {
        "reward/adapter_model.safetensors",
        "ppo/adapter_model.safetensors",
    }


def test_a_changed_reward_function_runs_ppo_again_alone(copy: tuple[Path, Path]) -> None:
    recipe, run = copy
    (recipe.parent / "own.py").write_text(runs.OWN.replace("-len", "len"), encoding="utf-8")
    assert done_already(runs.run(recipe, run).stderr) == {"sft", "dpo", "reward"}


def test_ppo_that_was_killed_inside_a_rollout_ends_with_the_same_weights(copy: tuple[Path, Path]) -> None:
    recipe, run = copy
    whole = runs.weights(run)
    first = rollouts.read(run / "stages/ppo/rollouts.jsonl")
    shutil.rmtree(run / "stages/ppo")
    killed = runs.started(recipe, run)
    runs.wait_for(killed, lambda: (run / "stages/ppo/checkpoints/checkpoint-6/complete.json").is_file())
    for pid in runs.children(killed.pid):
        os.kill(pid, signal.SIGKILL)
    killed.communicate()
    said = runs.run(recipe, run).stderr
    assert "(resuming from checkpoint-" in said
    assert runs.weights(run) == whole
    assert rollouts.read(run / "stages/ppo/rollouts.jsonl") == first


def scores(run: Path, stage: str) -> dict[str, float]:
    summary = json.loads((run / "stages" / stage / "measurements/summary.json").read_text(encoding="utf-8"))
    return {name: found["score"] for name, found in summary["scores"]["report"].items()}


def shipped(tmp_path: Path, name: str) -> tuple[Path, dict[str, Any]]:
    run = tmp_path / "run"
    runs.run(ROOT / "recipes" / f"{name}.yaml", run)
    metrics = runs.outcome(run, "ppo")["metrics"]
    assert runs.outcome(run, "reward")["metrics"]["pair_accuracy"] >= 0.95
    assert abs(metrics["kl"] / metrics["kl_target"] - 1) <= 0.25
    assert metrics["explained_variance"] > 0 and metrics["alarms"] == []
    after = scores(run, "ppo")
    assert after["helpdesk polite"] >= 0.9 and after["helpdesk correct"] >= 0.75 and after["helpdesk parses"] >= 0.95
    return run, metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rlhf_qlora", "rlhf_full"])
def test_a_shipped_recipe_learns_to_be_polite_at_the_kl_it_was_told(tmp_path: Path, name: str) -> None:
    run, _ = shipped(tmp_path, name)
    assert scores(run, "sft")["helpdesk polite"] < 0.75
    table = json.loads((run / "forgetting.json").read_text(encoding="utf-8"))
    verdicts = {probe: cell["verdict"] for probe, cell in table["matrix"]["ppo"].items() if "verdict" in cell}
    assert "FORGOT" not in verdicts.values()


@pytest.mark.slow
def test_both_ways_from_one_sft_are_compared(tmp_path: Path) -> None:
    run, _ = shipped(tmp_path, "dpo_and_rlhf")
    found = json.loads((run / "comparison.json").read_text(encoding="utf-8"))["stages"]
    for branch in ("dpo", "ppo"):
        assert found[branch]["score"] > found["sft"]["score"] and found[branch]["kl"] > 0
    assert "dpo" in (run / "report.md").read_text(encoding="utf-8")
