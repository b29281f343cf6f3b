"""A stage whose memory runs out goes on with fewer rows at a time, and ends with the weights of its batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
import tight_memory
from align.errors import AlignError
from align.run_folder import files
from align.run_folder.records import Ticket
from align.run_folder.stage_dir import StageDir
from align.runner import memory
from align.stage import program
from align.worker import memory as lack
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
    ("changed", "rows", "batch", "lower"),
    [
        (
            ("    data:", "    on_out_of_memory: stop\n    data:"),
            "4:2",
            8,
            "lower `per_device_train_batch_size`, which is 8, ",
        ),
        (
            ("per_device_train_batch_size: 8", "per_device_train_batch_size: 6"),
            "1:2",
            3,
            "lower `per_device_train_batch_size`, which is 3, ",
        ),
    ],
    ids=["stop", "an odd number"],
)
def test_a_stage_that_cannot_go_on_says_what_may_fit(
    changed: tuple[str, str], rows: str, batch: int, lower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = written(tmp_path, RECIPE.replace(*changed))
    monkeypatch.setenv("MEMORY", rows)
    said = " ".join(runs.run(recipe, tmp_path / "run", code=1).stderr.split())
    assert f"error stage 'sft' ran out of memory -> write `gradient_checkpointing: true`, {lower}or use qlora" in said
    ticket = json.loads((tmp_path / "run/stages/sft/ticket.json").read_text(encoding="utf-8"))
    assert ticket["training"]["per_device_train_batch_size"] == batch


def test_an_evaluation_has_rows_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = written(tmp_path)
    runs.run(recipe, tmp_path / "whole")
    monkeypatch.setenv("EVALUATED", "2")
    said = " ".join(runs.run(recipe, tmp_path / "run").stderr.split())
    for had, has in ((8, 4), (4, 2)):
        assert f"with {had} rows at a time; it goes on with `per_device_eval_batch_size: {has}`" in said
    assert "with 8 rows at a time; it goes on with `per_device_train_batch_size" not in said
    assert runs.weights(tmp_path / "run") == runs.weights(tmp_path / "whole")


def ticket(**training: Any) -> Ticket:
    given = {"stage": "ppo", "training": training, "warnings": ["told before"], "processes": 1}
    return Ticket.model_construct(**given)


def test_what_fits_is_held_against_the_recipe(tmp_path: Path) -> None:
    """However often it was halved, and in which process."""
    here, asked = StageDir(tmp_path), ticket(per_device_train_batch_size=8, steps_per_generation=2)
    assert memory.fitting(here, asked) is asked
    for rows, parts in ((4, 2), (2, 4), (1, 8)):
        files.write_json(here.batch, files.sealed(memory.Batch(rows=rows, warnings=("less",)).model_dump(mode="json")))
        found = memory.fitting(here, asked)
        assert (found.parts, found.training["gradient_accumulation_steps"]) == (parts, parts)
        assert found.training["steps_per_generation"] == 2 * parts and found.warnings == ["told before", "less"]
    files.write_json(here.batch, files.sealed(memory.Batch(evaluated=4).model_dump(mode="json")))
    assert memory.fitting(here, asked).training == {**asked.training, "per_device_eval_batch_size": 4}


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (AlignError("the reward raised ZeroDivisionError (the first prompt was 'My PC is out of memory')"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_a_lack_of_memory(error: Exception, is_one: bool) -> None:
    assert lack.ran_out(error) is is_one


@pytest.mark.parametrize(
    ("stage", "keys", "splits"),
    [
        ("dpo", {}, True),
        ("dpo", {"loss_type": "aot"}, False),
        ("dpo", {"loss_type": ["sigmoid", "sft"]}, False),
        ("ppo", {"reward": "./own.py:short"}, True),
        ("ppo", {"reward": "./own.py:short", "target_kl": 0.1}, False),
        ("sft", {}, True),
    ],
)
def test_a_loss_that_is_not_that_of_its_parts_is_not_split(stage: str, keys: dict[str, Any], splits: bool) -> None:
    found = program.load(stage, Path()).stage.keys.model_validate({"data": "lab/helpdesk", **keys})
    assert found.splits({}) is splits


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, 2])
def test_every_stage_ends_with_the_weights_of_its_batch(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that samples answers, within a rollout."""
    recipe = written(tmp_path, OTHERS)
    runs.run(recipe, tmp_path / "whole")
    monkeypatch.setenv("MEMORY", f"{rows}:4")
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
    monkeypatch.setenv("MEGABYTES", "1")  # too little for one row
    few = ("--set", "stages.sft.training.per_device_train_batch_size=4")
    said = " ".join(runs.run(recipe, tmp_path / "none", *few, code=1).stderr.split())
    assert "with 2 rows at a time; it goes on with" in said
    assert "error stage 'sft' ran out of memory -> write `gradient_checkpointing: true`, or use qlora" in said
