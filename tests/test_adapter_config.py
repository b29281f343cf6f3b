"""adapter_config.json is the same file for the same settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import LoraConfig

from align.policy import adapter_config
from align.run_folder.paths import RunDir
from models import BASE, LORA, Stages

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], sorted(NAMES)])
def test_the_names_of_a_set_are_in_order_and_lists_stay_as_they_are(tmp_path: Path, order: list[str]) -> None:
    config = LoraConfig(target_modules=order, modules_to_save=["z", "a"])
    config.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**before, "target_modules": order}), encoding="utf-8")  # as another process has it
    adapter_config.put_in_order(tmp_path, config, revision="abc")
    after = json.loads(path.read_text(encoding="utf-8"))
    assert after == {**before, "target_modules": sorted(NAMES), "revision": "abc"}
    assert list(after) == sorted(after) and after["modules_to_save"] == ["z", "a"]
    assert LoraConfig.from_pretrained(str(tmp_path)).target_modules == set(NAMES)


def test_a_stage_writes_it_in_order(tmp_path: Path) -> None:
    stages = Stages(RunDir(tmp_path))
    stages.execute(stages.ticket("sft", "sft", BASE, LORA, max_steps=1))
    found = json.loads((stages.run.stage("sft").model / "adapter_config.json").read_text(encoding="utf-8"))
    assert found["target_modules"] == sorted(NAMES)
