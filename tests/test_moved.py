"""A run that was moved, with its base, goes on where it is now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import runs
from align.lab import MODEL_DIR

TRAINING = {"max_steps": 2, "per_device_train_batch_size": 4, "bf16": False, "save_strategy": "no"}


def recipe() -> str:
    pairs = {"source": "lab/helpdesk_preferences", "limit": 24}
    stages = {
        "sft": {"data": {"source": "lab/helpdesk", "limit": 24}, "training": TRAINING},
        "dpo": {"policy": "sft", "data": pairs, "training": TRAINING},
    }
    return json.dumps(
        {
            "name": "moved",
            "model": {"base": "./model", "dtype": "float32"},
            "parameterization": {"method": "lora"},
            "forgetting": {"probes": "none"},
            "stages": stages,
        }
    )


def test_a_stage_starts_from_one_that_was_trained_elsewhere(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    shutil.copytree(MODEL_DIR, before / "model")
    (before / "recipe.yaml").write_text(recipe(), encoding="utf-8")
    runs.run(before / "recipe.yaml", before / "run", "--only", "sft")
    before.rename(after)
    said = runs.run(after / "recipe.yaml", after / "run").stderr
    assert "sft: done already" in said
    policy = runs.outcome(after / "run", "dpo")["policy"]
    assert policy["base"]["path"] == str(after / "model")
