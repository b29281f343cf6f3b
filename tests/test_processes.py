"""Two processes train what one does at the same global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import runs

FLOAT32 = (
    "--set",
    "parameterization={method: lora}",
    "--set",
    "model.dtype=float32",
    "--set",
    "stages.sft.training.bf16=false",
    "--set",
    "stages.dpo.training.bf16=false",
)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    recipe = runs.write(tmp_path)
    runs.run(recipe, tmp_path / "one", *FLOAT32)
    runs.run(
        recipe,
        tmp_path / "two",
        *FLOAT32,
        "--processes",
        "2",
        "--set",
        "stages.sft.training.per_device_train_batch_size=4",
        "--set",
        "stages.dpo.training.per_device_train_batch_size=2",
    )
    for stage in ("sft", "dpo"):
        one, two = runs.outcome(tmp_path / "one", stage), runs.outcome(tmp_path / "two", stage)
        assert (two["world_size"], two["distributed_type"]) == (2, "MULTI_CPU")
        assert one["global_batch_size"] == two["global_batch_size"]
        assert one["fingerprint"] == two["fingerprint"], "how many processes is no part of what is trained"
        name = f"stages/{stage}/model/adapter_model.safetensors"
        first, second = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        assert first.keys() == second.keys()
        assert max(float((first[key] - second[key]).abs().max()) for key in first) <= 1e-5
    again = runs.run(recipe, tmp_path / "two", *FLOAT32)
    assert again.stderr.count("done already") == 2, "one process goes on with what two have done"
