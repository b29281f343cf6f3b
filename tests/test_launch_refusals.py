"""Launches that are refused: each row of the table, before torch is imported; and what stands beside it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.engines import deepspeed
from align.errors import AlignError, Faults
from align.recipe.launch_refusals import REFUSALS, table
from align.recipe.load import load
from align.run_folder.launch import Launch

ROOT = Path(__file__).parents[1]
RECIPE = """\
name: refused
model: {base: lab}
parameterization: {method: lora}
stages:
  sft:
    launch: {engine: deepspeed, processes: 2}
    data: lab/helpdesk
"""
OWN = (ROOT / "stages/sft.py").read_text(encoding="utf-8")
# What makes a stage that a row refuses, by the beginning of what the row is about.
MADE = {
    "a stage that samples": ["stages.sft.stage=grpo", "stages.sft.reward=./own.py:short"],
    "offload_optimizer": [
        "stages.sft.stage=grpo",
        "stages.sft.reward=./own.py:short",
        "stages.sft.launch.offload_optimizer=true",
    ],
    "vLLM": ["stages.sft.stage=grpo", "stages.sft.reward=./own.py:short", "stages.sft.training.use_vllm=true"],
    "a stage of your own": ["stages.sft.stage=./mine.py"],
    "a method other than full and lora": ["stages.sft.parameterization={method: spectrum}"],
    "a method other than full, spectrum": ["stages.sft.parameterization={method: qlora}"],
    "modules_to_save": ["parameterization.lora.modules_to_save=[lm_head]"],
    "a LoRA with bias": ["parameterization.lora.bias=all"],
    "use_dora": ["parameterization.lora.use_dora=true"],
    "a base in 4": ["parameterization={method: spectrum, lora: {}, quantization: {}}"],
    "every weight": ["parameterization.method=full", "model.dtype=float16"],
    "arguments of DDP": ["stages.sft.training.ddp_bucket_cap_mb=25"],
    "a term beside": ["stages.sft.l2_sp=0.01"],
    "an optimizer other": ["stages.sft.training.optim=sgd"],
    "fp16": ["stages.sft.training.fp16=true"],
    "torch_compile": ["stages.sft.training.torch_compile=true"],
    "measuring inside": ["forgetting.every=2"],
}


def refused(folder: Path, *overrides: str) -> list[AlignError]:
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "mine.py").write_text(OWN, encoding="utf-8")
    (folder / "own.py").write_text("def short(completions, **_):\n    return [0.0] * len(completions)\n", "utf-8")
    try:
        load(folder / "recipe.yaml", overrides)
    except Faults as error:
        return error.faults
    except AlignError as error:
        return [error]
    return []


@pytest.mark.parametrize("name", MADE)
def test_each_row_is_refused_and_the_same_stage_trains_with_ddp(name: str, tmp_path: Path) -> None:
    row = next(row for row in REFUSALS if row.what.startswith(name))
    for named in row.engines:
        engine, _, zero = named.partition(" with zero_stage ")
        stage = [f"stages.sft.launch.zero_stage={zero}"] if zero else []
        found = refused(tmp_path, *MADE[name], f"stages.sft.launch.engine={engine}", *stage)
        what = f"stage 'sft' cannot have the engine {engine} with {row.what}: {row.why}"
        assert [(fault.what, fault.remedy) for fault in found] == [(what, row.instead)]
    made = [change for change in MADE[name] if ".launch." not in change]
    assert refused(tmp_path, *made, "stages.sft.launch.engine=ddp") == []


def test_every_row_has_a_recipe_here() -> None:
    assert len(MADE) == len(REFUSALS)
    assert all(sum(row.what.startswith(name) for name in MADE) == 1 for row in REFUSALS)


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "reward"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("engine", ["fsdp", "deepspeed, zero_stage: 3", "deepspeed, offload_optimizer: true"])
def test_what_is_tested_is_accepted(stage: str, method: str, engine: str, tmp_path: Path) -> None:
    data = "lab/helpdesk" if stage == "sft" else "lab/helpdesk_preferences"
    entry = (f"stages.sft.stage={stage}", f"stages.sft.data={data}", f"parameterization.method={method}")
    entry = (*entry, f"stages.sft.launch={{engine: {engine}, processes: 2}}")
    assert refused(tmp_path, *entry, "stages.sft.training.optim=adamw_torch", "stages.sft.training.bf16=true") == []


def test_the_page_shows_the_rows_that_are_refused() -> None:
    assert table() in (ROOT / "docs/engines.md").read_text(encoding="utf-8")


def test_the_extra_asks_for_the_versions_that_are_tested() -> None:
    assert f'deepspeed = ["deepspeed{deepspeed.TESTED}"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_another_version_of_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.14.0")
    lacks = "deepspeed 0.14.0 is installed, but align needs >=0.19.8,<0.20"
    assert deepspeed.missing(Launch(engine="deepspeed", zero_stage=2)) == (lacks, deepspeed.INSTALL)


def test_a_compilation_that_was_broken_off_is_told_and_one_under_way_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.19.8")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "py311_cpu/deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    launch = Launch(engine="deepspeed", zero_stage=2)
    assert deepspeed.missing(launch) is None
    monkeypatch.setattr("time.time", lambda: lock.stat().st_mtime + 601)
    what = "the compilation of an extension of DeepSpeed was broken off, and each run would wait for it"
    assert deepspeed.missing(launch) == (what, f"remove {lock.parent}")
