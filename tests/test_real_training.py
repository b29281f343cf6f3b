"""A real model with its own tokenizer and template: what is trained, TRL's losses, and where what is trained stops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

import runs
from align.parameterization import method as methods
from align.policy import load as loading
from align.run_folder.files import read_json
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Policy
from align.trainers.sft import SftTrainer
from models import FULL, Stages

pytestmark = pytest.mark.real

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
MARKED = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '" + SYSTEM.replace("\n", "\\n") + "' }}"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINGS = ("grass", "coal", "snow", "blood", "the sky", "a lemon", "a carrot", "a plum", "sand", "a swan")
COLOURS = ("Green.", "Black.", "White.", "Red.", "Blue.", "Yellow.", "Orange.", "Purple.", "Yellow, mostly.", "White.")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


TALKS = [
    {"messages": [user(f"Colour of {thing}?"), said(colour), user("Are you sure?"), said("Quite sure.")]}
    for thing, colour in zip(THINGS, COLOURS, strict=True)
]
PAIRS = [
    {
        "prompt": f"{SYSTEM}<|im_start|>user\nColour of {thing}?<|im_end|>\n<|im_start|>assistant\n",
        "chosen": colour,
        "rejected": "Why should I know?",
    }
    for thing, colour in zip(THINGS, COLOURS, strict=True)
]
STEPS = {"max_steps": 10, "learning_rate": 1e-5, "lr_scheduler_type": "constant", "warmup_steps": 0}
OURS = {**STEPS, "train_sampling_strategy": "sequential", "per_device_train_batch_size": 2, "bf16": False}


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(RunDir(tmp_path / "run"))


def start(folder: Path) -> Policy:
    return Policy(base=BaseModelIdentity(name="smollm2", path=str(folder), identity="2" * 64))


def theirs(config: Any, folder: Path, **more: Any) -> Any:
    return config(
        output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", logging_steps=1,
        per_device_train_batch_size=2, gradient_checkpointing=False, seed=3, **{**STEPS, "bf16": False, **more},
    )  # fmt: skip


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def in_order(trainer: type[Any]) -> type[Any]:
    """TRL's trainer over the rows as they stand."""
    sequential = torch.utils.data.SequentialSampler
    return type("InOrder", (trainer,), {"_get_train_sampler": lambda self, *_: sequential(self.train_dataset)})


def test_the_first_batch_of_the_running_trainer(smollm2: Path, stages: Stages) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    step = SftTrainer.training_step

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        seen.append({name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)})
        return step(self, model, inputs, *rest)

    with mock.patch.object(SftTrainer, "training_step", training_step):
        given = {**OURS, "max_steps": 1, "per_device_train_batch_size": 10}
        stages.execute(stages.ticket("sft", "sft", start(smollm2), FULL, rows=TALKS, dtype="float32", **given))
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    shown = []
    for ids, labels, attention in zip(*(seen[0][k] for k in ("input_ids", "labels", "attention_mask")), strict=True):
        text, on = "", False
        for token, label in zip(ids[attention.bool()].tolist(), labels[attention.bool()].tolist(), strict=True):
            text += ("[" if label >= 0 and not on else "]" if label < 0 and on else "") + tokenizer.decode([token])
            on = label >= 0
        shown.append(text)
    assert shown == [
        f"{SYSTEM}<|im_start|>user\nColour of {thing}?<|im_end|>\n<|im_start|>assistant\n[{colour}<|im_end|>]\n"
        "<|im_start|>user\nAre you sure?<|im_end|>\n<|im_start|>assistant\n[Quite sure.<|im_end|>]\n"
        for thing, colour in zip(THINGS, COLOURS, strict=True)
    ]


def test_sft_has_the_losses_of_trl(smollm2: Path, stages: Stages, tmp_path: Path) -> None:
    ticket = stages.ticket("sft", "sft", start(smollm2), FULL, rows=TALKS, dtype="float32", **OURS)
    stages.execute(ticket)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = MARKED
    set_seed(3)
    trainer = in_order(SFTTrainer)(
        model=AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32),
        args=theirs(SFTConfig, tmp_path / "trl", assistant_only_loss=True),
        train_dataset=Dataset.from_list(TALKS),
        processing_class=tokenizer,
    )
    assert stages.logged("sft", "loss") == pytest.approx(losses(trainer), abs=1e-4)


def test_dpo_has_the_losses_of_trl(smollm2: Path, stages: Stages, tmp_path: Path) -> None:
    ticket = stages.ticket("dpo", "dpo", start(smollm2), FULL, rows=PAIRS, dtype="float32", **OURS)
    stages.execute(ticket)
    trainer = in_order(DPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32),
        args=theirs(DPOConfig, tmp_path / "trl"),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=AutoTokenizer.from_pretrained(smollm2),
    )
    found = stages.logged("dpo", "loss")
    assert found[0] == pytest.approx(0.693147, abs=1e-5) and found[-1] < 0.69
    assert found == pytest.approx(losses(trainer), abs=1e-4)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_dpo_of_an_adapter_in_bfloat16_has_the_losses_of_trl(
    method: str, smollm2: Path, stages: Stages, tmp_path: Path
) -> None:
    """Within 2e-3: TRL computes the reference beside the policy. Of 4 bits it makes the adapter bfloat16."""
    coarse = {"adapter_dtype": "bfloat16"} if method == "qlora" else {}
    settings = {"method": method, "lora": {"r": 8}, **coarse}
    rates = {"bf16": True, "learning_rate": 1e-4}
    ticket = stages.ticket("dpo", "dpo", start(smollm2), settings, rows=PAIRS, dtype="bfloat16", **{**OURS, **rates})
    stages.execute(ticket)
    program = methods.load(method)
    keys = program.Keys.model_validate(settings)
    base = loading.load_weights(str(smollm2), {}, torch.bfloat16, program.quantization(keys))
    set_seed(3)
    trainer = in_order(DPOTrainer)(
        model=program.apply(base, keys, "default"),
        args=theirs(DPOConfig, tmp_path / "trl", **rates),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=AutoTokenizer.from_pretrained(smollm2),
    )
    found = stages.logged("dpo", "loss")
    assert found[0] == pytest.approx(0.693147, abs=1e-5) and found[-1] < 0.69
    assert found == pytest.approx(losses(trainer), abs=2e-3)


def test_reward_has_the_losses_of_trl(smollm2: Path, stages: Stages, tmp_path: Path) -> None:
    ticket = stages.ticket("reward", "reward", start(smollm2), FULL, rows=PAIRS, dtype="float32", **OURS)
    stages.execute(ticket)
    model = AutoModelForSequenceClassification.from_pretrained(smollm2, num_labels=1, dtype=torch.float32)
    odd = model.load_state_dict(stages.before["reward"], strict=False)  # the same new head
    assert not odd.missing_keys and all("rotary" in name for name in odd.unexpected_keys)  # buffers, not weights
    trainer = in_order(RewardTrainer)(
        model=model,
        args=theirs(RewardConfig, tmp_path / "trl", center_rewards_coefficient=0.01),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=AutoTokenizer.from_pretrained(smollm2),
    )
    assert stages.logged("reward", "loss") == pytest.approx(losses(trainer), abs=1e-4)


RECIPE = """\
name: colours
seed: 1
model: {base: BASE, dtype: float32}
parameterization: {method: full}
forgetting: {probes: none}
stages:
  sft:
    data: {source: rows.jsonl}
    training: {max_steps: 16, per_device_train_batch_size: 4, learning_rate: 3.0e-5, save_strategy: "no"}
  ppo:
    policy: sft
    data: {source: rows.jsonl}
    reward: ./short.py:short
    training: {max_steps: 2, max_completion_length: 24, per_device_train_batch_size: 4, save_strategy: "no"}
"""


def test_a_base_whose_end_is_not_that_of_its_turns_learns_to_stop(smollm2: Path, tmp_path: Path) -> None:
    """In align chat, in plain transformers with the saved folder, and in PPO's rollouts."""
    base = tmp_path / "base"
    shutil.copytree(smollm2, base)
    named = dict.fromkeys(("eos_token", "bos_token", "pad_token"), "<|endoftext|>")
    config = read_json(base / "tokenizer_config.json")
    (base / "tokenizer_config.json").write_text(json.dumps(config | named))
    ids = dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), 0)
    for name in ("config.json", "generation_config.json"):
        if (base / name).is_file():
            (base / name).write_text(json.dumps(read_json(base / name) | ids))
    rows = [{"messages": one["messages"][:2]} for one in TALKS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "short.py").write_text("def short(completions, **_):\n    return [1.0 for _ in completions]\n")
    recipe = runs.write(tmp_path, RECIPE.replace("BASE", str(base)))
    runs.run(recipe, tmp_path / "run")

    told = runs.align("chat", str(tmp_path / "run"), "--stage", "sft", stdin="Colour of grass?\n\n").stdout.strip()
    assert told.splitlines()[-1].endswith(".") and "system" not in told and "user" not in told

    folder = tmp_path / "run" / "stages" / "sft" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = tokenizer.apply_chat_template(
        [user("Colour of coal?")], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        out = model.generate(**asked, max_new_tokens=40, do_sample=False)[0, asked["input_ids"].size(1) :]
    assert tokenizer.decode(out).endswith("<|im_end|>") and len(out) < 20

    rollouts = [json.loads(line) for line in (tmp_path / "run/stages/ppo/rollouts.jsonl").read_text().splitlines()]
    assert rollouts[0]["missing_eos"] < 0.3 and rollouts[0]["length"] < 16
    assert "<|im_start|>" not in json.dumps(rollouts)
