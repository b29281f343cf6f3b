"""A stage whose memory runs out goes on with fewer rows at a time, and ends with the weights of its batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import runs
import tight_memory
from align.run_folder.stage_dir import StageDir
from test_sharing_engines import worst

RECIPE = """\
name: tight
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    stage: ./tight_sft.py
    data: {source: lab/helpdesk, limit: 96}
    eval_data: 8
    training: {learning_rate: 1.0e-3, max_steps: 8, per_device_train_batch_size: 8, save_steps: 3, bf16: false}
"""
OTHERS = """\
name: tight
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  dpo: &pairs
    stage: ./tight_dpo.py
    policy: base
    data: {source: lab/helpdesk_preferences, limit: 64}
    training: {learning_rate: 1.0e-3, max_steps: 6, per_device_train_batch_size: 8, save_steps: 2, bf16: false}
  kto:
    <<: *pairs
    stage: ./tight_kto.py
  reward:
    <<: *pairs
    stage: ./tight_reward.py
  ppo:
    stage: ./tight_ppo.py
    policy: base
    data: {source: lab/helpdesk, limit: 64}
    reward: ./own.py:short
    training: &sampled {bf16: false, learning_rate: 1.0e-3, max_steps: 8, save_steps: 3, per_device_train_batch_size: 8,
      steps_per_generation: 2, num_iterations: 2, max_completion_length: 12, logging_steps: 1}
  grpo:
    stage: ./tight_grpo.py
    policy: base
    data: {source: lab/helpdesk, limit: 64}
    reward: ./own.py:short
    training: {<<: *sampled, num_generations: 4}
  sdft:
    stage: ./tight_sdft.py
    policy: base
    data: {source: lab/helpdesk, limit: 64}
    training: *sampled
"""

STAGES = ("dpo", "kto", "reward", "ppo", "grpo", "sdft")


def written(folder: Path, text: str = RECIPE) -> Path:
    """The recipe, with the stages that it names."""
    for name in ("sft", *STAGES):
        tight_memory.write(folder, name)
    (folder / "own.py").write_text(runs.OWN, encoding="utf-8")
    return runs.write(folder, text)


def test_the_rows_at_a_time_are_halved_until_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last checkpoint on; a run that is killed then knows what fits."""
    recipe, run = written(tmp_path), tmp_path / "run"
    runs.run(recipe, tmp_path / "whole")
    monkeypatch.setenv("MEMORY", "2:5")
    said = " ".join(runs.run(recipe, run).stderr.split())
    for had, has, times in ((8, 4, 2), (4, 2, 4)):
        assert (
            f"out of memory in step 5 with {had} rows at a time; it goes on with `per_device_train_batch_size: {has}` "
            f"and `gradient_accumulation_steps: {times}`, the same batch of 8"
        ) in said
    assert said.count("(resuming from checkpoint-3)") == 2
    assert worst(tmp_path / "whole", run, "sft") < 1e-5
    outcome = runs.outcome(run, "sft")
    assert [text.partition(";")[0] for text in outcome["warnings"]] == [
        "out of memory in step 5 with 8 rows at a time",
        "out of memory in step 5 with 4 rows at a time",
    ]
    assert outcome["global_batch_size"] == 8 and outcome["steps"] == 8
    assert "out of memory in step 5 with 8 rows at a time" in (run / "report.md").read_text(encoding="utf-8")

    here = StageDir(run / "stages/sft")  # as it is where the command was killed before the end
    here.outcome.unlink()
    shutil.rmtree(here.model)
    said = runs.run(recipe, run).stderr
    assert "out of memory" not in said.partition("25%")[0]
    assert json.loads(here.ticket.read_text(encoding="utf-8"))["training"]["per_device_train_batch_size"] == 2
    assert worst(tmp_path / "whole", run, "sft") < 1e-5


@pytest.mark.parametrize(
    ("changed", "rows", "batch"),
    [
        (("    data:", "    on_out_of_memory: stop\n    data:"), "4:2", 8),
        (("per_device_train_batch_size: 8", "per_device_train_batch_size: 6"), "1:2", 3),
    ],
    ids=["stop", "an odd number"],
)
def test_a_stage_that_cannot_go_on_says_what_may_fit(
    changed: tuple[str, str], rows: str, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = written(tmp_path, RECIPE.replace(*changed))
    monkeypatch.setenv("MEMORY", rows)
    said = " ".join(runs.run(recipe, tmp_path / "run", code=1).stderr.split())
    assert "error stage 'sft' ran out of memory" in said
    assert "gradient_checkpointing on, or use qlora" in said
    ticket = json.loads((tmp_path / "run/stages/sft/ticket.json").read_text(encoding="utf-8"))
    assert ticket["training"]["per_device_train_batch_size"] == batch


@pytest.mark.slow
def test_every_stage_ends_with_the_weights_of_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that samples answers, within a rollout."""
    recipe = written(tmp_path, OTHERS)
    runs.run(recipe, tmp_path / "whole")
    monkeypatch.setenv("MEMORY", "4:4")
    said = runs.run(recipe, tmp_path / "run").stderr
    assert said.count("out of memory in step 4 with 8 rows at a time") == len(STAGES)
    assert "`gradient_accumulation_steps: 2` and `steps_per_generation: 4`" in " ".join(said.split())
    found = {stage: worst(tmp_path / "whole", tmp_path / "run", stage) for stage in STAGES}
    assert max(found.values()) < 1e-4, found


@pytest.mark.slow
def test_a_real_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a limit of the system."""
    text = RECIPE.replace("limit: 96", "limit: 1024").replace("max_steps: 8, per_device_train_batch_size: 8", "{}")
    recipe = written(tmp_path, text.replace("{}", "max_steps: 3, per_device_train_batch_size: 1024"))
    runs.run(recipe, tmp_path / "whole")
    monkeypatch.setenv("MEGABYTES", "400")
    said = " ".join(runs.run(recipe, tmp_path / "run").stderr.split())
    assert "sft: out of memory in step 1 with 1024 rows at a time; it goes on with" in said
    assert worst(tmp_path / "whole", tmp_path / "run", "sft") < 1e-5
    monkeypatch.setenv("MEGABYTES", "20")
    few = ("--set", "stages.sft.training.per_device_train_batch_size=4")
    said = " ".join(runs.run(recipe, tmp_path / "none", *few, code=1).stderr.split())
    assert "with 2 rows at a time; it goes on with" in said
    assert "error stage 'sft' ran out of memory -> halve" in said
