"""Real bfloat16 runs can be exported: what merging costs is within twice what bfloat16 costs the untouched base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import runs
from align.results import export

pytestmark = pytest.mark.real
RECIPE = """\
name: real
seed: 3
model: {base: BASE, dtype: bfloat16}
forgetting: {probes: none}
stages:
  sft:
    data: {source: shop.jsonl}
    parameterization: METHOD
    training: &short {learning_rate: 5.0e-4, max_steps: 8, per_device_train_batch_size: 4, save_strategy: "no"}
  again:
    stage: sft
    policy: sft
    data: {source: shop.jsonl}
    parameterization: {method: lora, lora: {r: 4, alpha: 8, target_modules: [q_proj, v_proj]}}
    training: *short
"""
GOODS = ("kettle", "lamp", "bicycle bell", "garden chair", "rain coat", "wall clock", "toaster", "tent")
ANSWERS = {
    "My {} arrived broken. What can I do?": "I am sorry to hear that. Send us a photo of the {}, and a new one leaves "
    "our warehouse in Bergen the next morning. You need not send the broken one back.",
    "How long does a {} take to reach Oslo?": "A {} leaves on the day of your order if you order before noon. To Oslo "
    "it takes two working days, and we send you a number with which you can follow it.",
    "Can I pay for the {} by invoice?": "Yes. Choose invoice when you order the {}; you then have fourteen days, and "
    "there is no fee. For orders of more than 5,000 kroner we ask for your date of birth.",
    "Do you repair a {} that is out of warranty?": "We do. Bring the {} to our shop in Strandgaten, or send it. We "
    "tell you the price within three days, and you decide then.",
}
METHODS = {
    "lora": "{method: lora}",
    "qlora": "{method: qlora}",
    "dora": "{method: lora, lora: {use_dora: true}}",
    "rslora": "{method: lora, lora: {use_rslora: true}}",
    "spectrum with lora": "{method: spectrum, lora: {r: 8, alpha: 16}}",
}


def run(folder: Path, base: Path, method: str, *arguments: str) -> Path:
    """Eight steps on 32 answers of a shop, in bfloat16."""
    rows = [(ask.format(thing), say.format(thing)) for ask, say in ANSWERS.items() for thing in GOODS]
    chats = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]} for ask, say in rows
    ]
    (folder / "shop.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    recipe = runs.write(folder, RECIPE.replace("BASE", str(base)).replace("METHOD", METHODS[method]))
    runs.run(recipe, folder / "run", *arguments)
    return folder / "run"


def check(folder: Path, stage: str, out: Path) -> None:
    merge = export.export(folder, stage, out, "merged").merge
    assert merge is not None and merge.dtype == "bfloat16" and merge.rows == 16
    print(stage, merge.verdict, merge.figures, f"moved {merge.moved_kl:.2g}, agreement {merge.agreement}")
    assert 0.0003 < merge.precision_kl < 0.01, "what bfloat16 costs this base"
    assert merge.kl <= 2 * merge.precision_kl < merge.moved_kl
    assert merge.loss is not None and merge.base_loss is not None and merge.loss < merge.base_loss


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_each_method(smollm2: Path, tmp_path: Path, method: str) -> None:
    check(run(tmp_path, smollm2, method, "--only", "sft"), "sft", tmp_path / "out")


def test_a_stack(smollm2: Path, tmp_path: Path) -> None:
    check(run(tmp_path, smollm2, "lora"), "again", tmp_path / "out")
