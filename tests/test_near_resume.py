"""A stage with penalties that was killed ends with the weights of one that was not; two processes with those of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import runs
from align.run_folder import files
from test_resume import kill_child, kill_parent

EWC = "{data: {source: lab/general, limit: 60}, rows: 16, weight: 0.5, fisher: sampled}"
LORA = ("parameterization={method: lora}", f"stages.sft.ewc={EWC}", f"stages.dpo.ewc={EWC}", "stages.dpo.l2_sp=0.02")
FULL = (
    "parameterization={method: full}",
    "stages.sft.training.learning_rate=1.0e-4",
    "stages.sft.l2_sp=0.02",
    "stages.sft.kl_coef=0.2",
    f"stages.dpo.ewc={EWC}",
)


def given(overrides: tuple[str, ...]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [LORA, FULL], ids=["LoRA with EWC", "full with L2-SP and KL"])
def test_killed_in_sft_and_in_dpo(overrides: tuple[str, ...], tmp_path: Path) -> None:
    recipe, extra, folder = runs.write(tmp_path), given(overrides), tmp_path / "killed"
    runs.run(recipe, tmp_path / "whole", *extra)
    ewc = "sft" if overrides is LORA else "dpo"

    first = runs.started(recipe, folder, *extra)
    runs.wait_for(first, lambda: runs.last_step(folder, "sft") >= 5)
    kill_child(first)
    kept = files.read_json(folder / f"stages/{ewc}/fisher.json")
    second = runs.started(recipe, folder, *extra)
    runs.wait_for(second, lambda: runs.last_step(folder, "dpo") >= 3)
    kill_parent(second)
    last = runs.run(recipe, folder, *extra)
    assert "(resuming from checkpoint-" in last.stderr
    assert runs.weights(folder) == runs.weights(tmp_path / "whole")
    if ewc == "sft":
        assert runs.outcome(folder, "sft")["fisher"] == kept, "measured once, in the run that was killed first"
    whole = runs.outcome(tmp_path / "whole", ewc)["fisher"]
    assert runs.outcome(folder, ewc)["fisher"]["sha256"] == whole["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [LORA, FULL], ids=["LoRA with EWC", "full with L2-SP and KL"])
def test_two_processes_end_with_the_weights_of_one(overrides: tuple[str, ...], tmp_path: Path) -> None:
    fixed = ("model.dtype=float32", "stages.sft.training.bf16=false", "stages.dpo.training.bf16=false")
    halved = ("stages.sft.training.per_device_train_batch_size=4", "stages.dpo.training.per_device_train_batch_size=2")
    recipe = runs.write(tmp_path)
    runs.run(recipe, tmp_path / "one", *given(overrides + fixed))
    runs.run(recipe, tmp_path / "two", *given(overrides + fixed + halved), "--processes", "2")
    for stage in ("sft", "dpo"):
        one, two = runs.outcome(tmp_path / "one", stage), runs.outcome(tmp_path / "two", stage)
        assert one["fingerprint"] == two["fingerprint"]
        if stage == "sft" and one["fisher"]:
            assert one["fisher"]["sha256"] == two["fisher"]["sha256"], "of the same policy, bit for bit"
        file = next((tmp_path / "one" / f"stages/{stage}/model").glob("*model*.safetensors"))
        first, second = load_file(file), load_file(tmp_path / "two" / file.relative_to(tmp_path / "one"))
        assert max(float((first[key] - second[key]).abs().max()) for key in first) <= 1e-5
