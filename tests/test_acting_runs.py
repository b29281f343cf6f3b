"""Actions on violations in real runs of the lab, and kill -9 inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import runs
from align.errors import AlignError
from align.lab.probes import items
from align.results import find
from align.run_folder import attempts, handed_on
from align.run_folder.paths import RunDir
from test_resume import kill_child, kill_parent

RECIPE = """\
name: acted
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: METHOD}
forgetting:
  probes: {extract: {data: extract.jsonl, metric: exact}}
  answers: false
  max_drop: 0.02
  on_violation: [retry, rollback]
  retry: {times: 1, learning_rate: 0.9, max_steps: 0.75}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 96}
    training: {learning_rate: RATE, max_steps: 16, per_device_train_batch_size: 8, save_steps: 2, logging_steps: 1}
  dpo:
    policy: sft
    data: {source: lab/helpdesk_preferences, limit: 32}
    training: {learning_rate: 1.0e-6, max_steps: 2, per_device_train_batch_size: 4}
"""
RATES = {"lora": "1.0e-2", "qlora": "1.0e-2", "full": "1.0e-3", "spectrum": "1.0e-2"}


def written(folder: Path, method: str) -> Path:
    """The recipe, and eighty questions that the lab's model answers."""
    asked = [{"prompt": one.prompt, "answer": one.answer} for one in items("extract", "report")[:80]]
    (folder / "extract.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    return runs.write(folder, RECIPE.replace("METHOD", method).replace("RATE", RATES[method]))


def decisions(folder: Path) -> dict[str, Any]:
    """Those of all stages, and of the attempts."""
    found = sorted((folder / "stages").rglob("decision.json"))
    return {path.relative_to(folder).as_posix(): json.loads(path.read_text(encoding="utf-8")) for path in found}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora", "full", "spectrum"])
def test_a_run_killed_in_a_retry_and_before_a_rollback_comes_to_the_same(method: str, tmp_path: Path) -> None:
    recipe, whole, folder = written(tmp_path, method), tmp_path / "whole", tmp_path / "killed"
    done = runs.run(recipe, whole)
    found = decisions(whole)
    assert found["stages/sft/attempts/1/decision.json"]["action"] == "retry"
    last = found["stages/sft/decision.json"]
    assert (last["action"], last["policy"], last["attempt"]) == ("continue", "rolled_back", 2)
    assert [one["changed"] for one in last["attempts"]][1]["max_steps"] == [16, 12]
    assert "gate sft: rolled back: what follows goes on from the base, as if sft had not been trained" in " ".join(
        done.stderr.split()
    )
    policy = runs.outcome(whole, "dpo")["policy"]
    assert [adapter["name"] for adapter in policy["adapters"]] == ([] if method in ("full", "spectrum") else ["dpo"])

    here = RunDir(folder).stage("sft")
    first = runs.started(recipe, folder)
    runs.wait_for(first, lambda: attempts.standing(here) == 2 and runs.last_step(folder, "sft") >= 3)
    kill_child(first)
    second = runs.started(recipe, folder)
    runs.wait_for(second, lambda: (here.checkpoints / "checkpoint-12/complete.json").is_file())
    kill_parent(second)
    assert not handed_on.rolled_back(here), "killed before that was decided"
    again = runs.run(recipe, folder)
    assert "sft, attempt 2: supervised fine-tuning on answers (resuming from checkpoint-12)" in again.stderr
    assert decisions(folder) == found
    assert runs.weights(folder) == runs.weights(whole)
    assert runs.run(recipe, folder).stderr.count("done already") == 2


@pytest.mark.slow
def test_what_a_rolled_back_run_hands_on(tmp_path: Path) -> None:
    """The last stage is rolled back: what goes on is the policy before it; then the first one too: none at all."""
    recipe, folder = written(tmp_path, "lora"), tmp_path / "run"
    text = recipe.read_text(encoding="utf-8").replace("[retry, rollback]", "rollback")
    recipe.write_text(text.replace("learning_rate: 1.0e-2, max_steps: 16", "learning_rate: 1.0e-6, max_steps: 2"))
    harsh = ("--set", "stages.dpo.training={learning_rate: 0.05, max_steps: 12, per_device_train_batch_size: 4}")
    runs.run(recipe, folder, *harsh)
    ticket, outcome = find.find(folder, None)
    assert (ticket.stage, outcome.stage) == ("sft", "sft") and list(find.finished(folder)) == ["sft"]
    with pytest.raises(AlignError) as error:
        find.find(folder, "dpo")
    assert str(error.value) == (
        f"stage 'dpo' of '{folder}' was rolled back, so its policy does not go on\n  -> choose one of: sft"
    )
    assert handed_on.policy(RunDir(folder), "dpo") == handed_on.policy(RunDir(folder), "sft")
    strict = ("--set", "stages.sft.training={learning_rate: 1.0e-2, max_steps: 16, per_device_train_batch_size: 8}")
    runs.run(recipe, folder, *harsh, *strict)
    with pytest.raises(AlignError) as error:
        find.find(folder, None)
    assert str(error.value) == (
        f"'{folder}' hands on no policy: all that it trained was rolled back to its base, lab\n"
        "  -> loosen the limits of its recipe, or change what it trains, and run it again"
    )
    assert "sft and dpo were rolled back, so the run hands on the base" in (folder / "report.md").read_text()
