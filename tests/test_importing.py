"""`align import`: what the files of LLaMA-Factory, Axolotl and TRL become, key by key."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from align import api
from align.errors import AlignError
from align.importing import shared, translate
from align.importing.translate import Imported
from align.lab import MODEL_DIR
from align.recipe import load


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def imported(given: dict[str, Any] | str, name: str = "theirs.yaml", **keys: Any) -> tuple[Imported, dict[str, Any]]:
    """What became of a file, and the recipe, which align has read."""
    text = given if isinstance(given, str) else yaml.safe_dump(given, sort_keys=False)
    Path(name).write_text(text)
    found = translate.translate(Path(name), **keys)
    Path("recipe.yaml").unlink(missing_ok=True)
    translate.write(found, Path("recipe.yaml"))
    load.load(Path("recipe.yaml"))
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    if not isinstance(given, str):  # of every key something is said, once
        said = [*found.mapped, *found.idle, *found.lost]
        assert sorted(key for key in said if key in given) == sorted(given)
    return found, recipe


FACTORY: dict[str, Any] = {
    "model_name_or_path": "org/model",
    "trust_remote_code": True,
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "dataset": "org/rows",
    "template": "qwen",
    "cutoff_len": 1024,
    "max_samples": 500,
    "output_dir": "out",
    "logging_steps": 10,
    "save_steps": 500,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": "1.0e-4",
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "report_to": "none",
    "plot_loss": True,
    "overwrite_cache": True,
    "val_size": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 50,
    "per_device_eval_batch_size": 1,
    "resume_from_checkpoint": None,
}


def test_a_file_of_llama_factory() -> None:
    found, recipe = imported(FACTORY)
    assert recipe == {
        "name": "theirs",
        "seed": 42,
        "model": {"base": "org/model"},
        "parameterization": {
            "method": "lora",
            "lora": {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": "auto"},
        },
        "stages": {
            "sft": {
                "data": {"source": "org/rows", "limit": 500},
                "eval_data": 0.1,
                "training": {
                    "max_length": 1024,
                    "logging_steps": 10,
                    "save_steps": 500,
                    "learning_rate": 1e-4,
                    "per_device_train_batch_size": 1,
                    "gradient_accumulation_steps": 8,
                    "num_train_epochs": 3.0,
                    "lr_scheduler_type": "cosine",
                    "warmup_steps": 0.1,
                    "bf16": True,
                    "eval_strategy": "steps",
                    "eval_steps": 50,
                    "per_device_eval_batch_size": 1,
                    "gradient_checkpointing": True,
                    "train_sampling_strategy": "random",
                },
            }
        },
    }
    assert found.mapped["lora_rank"] == "parameterization.lora.r"
    assert found.mapped["warmup_ratio"] == "stages.sft.training.warmup_steps"
    assert found.lost == {
        "template": shared.TEMPLATE,
        "dataset: org/rows": "it stands in a dataset_info.json that was not found: write its file, or its name on the "
        "Hub, in `data`",
    }


def test_what_llama_factory_does_where_its_file_says_nothing() -> None:
    given = {"model_name_or_path": "m", "dataset": "d", "finetuning_type": "lora", "lora_rank": 4}
    lora, training = (imported(given)[1][key] for key in ("parameterization", "stages"))
    assert lora["lora"] == {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "auto"}
    assert training["sft"]["training"] == {
        "max_length": 2048,
        "warmup_steps": 0,
        "gradient_checkpointing": True,
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 3.0,
        "train_sampling_strategy": "random",
        "bf16": False,
    }


@pytest.mark.parametrize(
    ("changes", "method", "stage", "keys"),
    [
        ({"finetuning_type": "full"}, {"method": "full"}, "sft", {}),
        (
            {"quantization_bit": 4, "lora_target": "q_proj, v_proj", "lora_dropout": 0.1, "use_dora": True},
            {
                "method": "qlora",
                "lora": {"r": 8, "alpha": 16, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"], "use_dora": True},
                "quantization": {"bits": 4},
            },
            "sft",
            {},
        ),
        (
            {"finetuning_type": "oft", "oft_block_size": 16, "oft_target": "all"},
            {"method": "oft", "peft": {"oft_block_size": 16}},
            "sft",
            {},
        ),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 2}, {"method": "spectrum"}, "sft", {}),
        ({"stage": "rm"}, None, "reward", {"eval_data": 0.1}),
        ({"stage": "dpo", "pref_beta": 0.3}, None, "dpo", {"beta": 0.3, "loss_type": "sigmoid"}),
        (
            {"stage": "dpo", "pref_loss": "ipo", "pref_ftx": 0.5},
            None,
            "dpo",
            {"beta": 0.1, "loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.5]},
        ),
        (
            {"stage": "kto", "kto_chosen_weight": 2.0, "per_device_train_batch_size": 4},
            None,
            "kto",
            {"beta": 0.1, "desirable_weight": 2.0},
        ),
        (
            {"train_on_prompt": True, "mask_history": True},
            None,
            "sft",
            {"completion_only_loss": False, "turns": "last"},
        ),
    ],
)
def test_stages_and_methods_of_llama_factory(
    changes: dict[str, Any], method: dict[str, Any] | None, stage: str, keys: dict[str, Any]
) -> None:
    recipe = imported(FACTORY | changes)[1]
    assert method is None or recipe["parameterization"] == method
    assert list(recipe["stages"]) == [stage]
    assert recipe["stages"][stage].items() >= keys.items()


def test_the_datasets_of_llama_factory_are_looked_up() -> None:
    Path("data").mkdir()
    info = {
        "mine": {"file_name": "mine.json"},
        "pairs": {"hf_hub_url": "org/pairs", "split": "dev", "columns": {"prompt": "question", "chosen": "good"}},
        "chats": {"hf_hub_url": "org/chats", "formatting": "sharegpt", "columns": {"messages": "conversations"}},
        "talks": {"file_name": "t.jsonl", "formatting": "sharegpt", "columns": {"messages": "talk"}, "num_samples": 7},
    }
    Path("data/dataset_info.json").write_text(json.dumps(info))
    found, recipe = imported(FACTORY | {"dataset": "mine,pairs,chats,talks", "max_samples": None})
    assert recipe["stages"]["sft"]["data"] == [
        "data/mine.json",
        {"source": "org/pairs", "split": "dev", "columns": {"instruction": "question", "chosen": "good"}},
        "org/chats",
        {"source": "data/t.jsonl", "columns": {"messages": "talk"}, "limit": 7},
    ]
    assert found.lost.keys() == {"template"}
    mixed = {"dataset": "mine,chats", "mix_strategy": "interleave_under", "interleave_probs": "0.7,0.3"}
    recipe = imported(FACTORY | mixed | {"max_samples": None})[1]
    weights = [one["weight"] for one in recipe["stages"]["sft"]["data"]]
    assert weights == [0.7, 0.3]


ALPACA = "datasets: type alpaca"  # of which the words '### Instruction:' are lost
AXOLOTL: dict[str, Any] = {
    "base_model": "org/model",
    "model_type": "LlamaForCausalLM",
    "load_in_8bit": False,
    "load_in_4bit": False,
    "datasets": [{"path": "org/rows", "type": "alpaca"}],
    "val_set_size": 0.1,
    "output_dir": "./out",
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_target_linear": True,
    "sequence_len": 2048,
    "sample_packing": True,
    "eval_sample_packing": True,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_epochs": 2,
    "optimizer": "adamw_bnb_8bit",
    "lr_scheduler": "cosine",
    "learning_rate": 2e-4,
    "bf16": "auto",
    "tf32": False,
    "gradient_checkpointing": True,
    "logging_steps": 1,
    "warmup_ratio": 0.1,
    "evals_per_epoch": 4,
    "saves_per_epoch": 1,
    "weight_decay": 0.0,
    "wandb_project": None,
    "special_tokens": {"pad_token": "<|end|>"},
    "dataset_prepared_path": None,
    "strict": False,
}


def test_a_file_of_axolotl() -> None:
    found, recipe = imported(AXOLOTL)
    assert recipe == {
        "name": "theirs",
        "seed": 42,
        "model": {"base": "org/model", "pad_token": "<|end|>"},
        "parameterization": {"method": "lora", "lora": {"r": 16, "alpha": 32, "dropout": 0.05}},
        "stages": {
            "sft": {
                "data": {"source": "org/rows", "format": "alpaca"},
                "eval_data": 0.1,
                "training": {
                    "per_device_train_batch_size": 2,
                    "max_length": 2048,
                    "packing": True,
                    "eval_packing": True,
                    "gradient_accumulation_steps": 2,
                    "num_train_epochs": 2,
                    "warmup_steps": 0.1,
                    "optim": "adamw_bnb_8bit",
                    "lr_scheduler_type": "cosine",
                    "learning_rate": 2e-4,
                    "eval_strategy": "steps",
                    "eval_steps": 0.125,
                    "save_steps": 0.5,
                    "weight_decay": 0.0,
                    "gradient_checkpointing": True,
                    "logging_steps": 1,
                    "train_sampling_strategy": "random",
                },
            }
        },
    }
    assert found.lost == {ALPACA: found.lost[ALPACA]}


@pytest.mark.parametrize(
    ("changes", "method", "stage", "keys"),
    [
        ({"adapter": None}, {"method": "full"}, "sft", {}),
        (
            {"adapter": "qlora", "load_in_4bit": True, "lora_target_linear": None, "lora_target_modules": ["q_proj"]},
            {
                "method": "qlora",
                "lora": {"r": 16, "alpha": 32, "dropout": 0.05, "target_modules": ["q_proj"]},
                "quantization": {"bits": 4},
            },
            "sft",
            {},
        ),
        (
            {"load_in_8bit": True},
            {"method": "qlora", "lora": {"r": 16, "alpha": 32, "dropout": 0.05}, "quantization": {"bits": 8}},
            "sft",
            {},
        ),
        (
            {"rl": "dpo", "rl_beta": 0.2, "rpo_alpha": 1.0},
            None,
            "dpo",
            {"beta": 0.2, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]},
        ),
        ({"rl": "ipo"}, None, "dpo", {"beta": 0.1, "loss_type": "ipo"}),
        ({"rl": "kto", "kto_desirable_weight": 0.5}, None, "kto", {"beta": 0.1, "desirable_weight": 0.5}),
        ({"reward_model": True, "val_set_size": None}, None, "reward", {"eval_data": 0}),
        ({"train_on_inputs": True}, None, "sft", {"completion_only_loss": False}),
        (
            {
                "datasets": [
                    {"path": "a.jsonl", "type": "chat_template", "field_messages": "talk", "split": "train[:100]"},
                    {"path": "json", "data_files": "b.json", "type": "completion", "field": "body"},
                ]
            },
            None,
            "sft",
            {
                "data": [
                    {"source": "a.jsonl", "limit": 100, "columns": {"messages": "talk"}},
                    {"source": "b.json", "format": "text", "columns": {"text": "body"}},
                ]
            },
        ),
    ],
)
def test_stages_and_methods_of_axolotl(
    changes: dict[str, Any], method: dict[str, Any] | None, stage: str, keys: dict[str, Any]
) -> None:
    recipe = imported(AXOLOTL | changes)[1]
    assert method is None or recipe["parameterization"] == method
    assert list(recipe["stages"]) == [stage]
    assert recipe["stages"][stage].items() >= keys.items()


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"deepspeed": "deepspeed_configs/zero3_bf16.json"}, {"deepspeed": "say how many processes there are"}),
        ({"plugins": ["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]}, {"plugins": "align has no"}),
        ({"nonsense": 7}, {"nonsense": "align knows no such key of Axolotl"}),
        ({"attn_implementation": "xformers"}, {"attn_implementation": "transformers has no such attention"}),
        ({"optimizer": "muon"}, {"optimizer": "'optim' cannot be 'muon'"}),
        (
            {"special_tokens": {"bos_token": "<s>", "eos_token": "</s>"}},
            {"special_tokens": "only eos_token and pad_token"},
        ),
        ({"nonsense": None}, {}),
    ],
)
def test_what_has_no_place_is_told_with_the_reason(changes: dict[str, Any], lost: dict[str, str]) -> None:
    found = imported(AXOLOTL | changes)[0]
    assert found.lost.keys() == {ALPACA, *lost}
    assert all(found.lost[key].startswith(why) for key, why in lost.items()), found.lost
    for key in lost:
        assert f"#   {key}: " in found.text, "it stands in the recipe as a comment"


def test_processes_that_are_given() -> None:
    recipe = imported(AXOLOTL | {"deepspeed": "zero3.json", "optimizer": "adamw_torch"}, processes=8)[1]
    assert recipe["launch"] == {"engine": "deepspeed", "zero_stage": 3, "processes": 8}
    assert imported(AXOLOTL | {"fsdp_version": 2, "optimizer": "adamw_torch"}, processes=4)[1]["launch"] == {
        "engine": "fsdp",
        "processes": 4,
    }


TRL: dict[str, Any] = {
    "model_name_or_path": "org/model",
    "dataset_name": "org/rows",
    "learning_rate": 1e-3,
    "max_steps": 5,
    "per_device_train_batch_size": 4,
    "warmup_steps": 2,
    "output_dir": "out",
    "report_to": "wandb",
    "use_peft": True,
    "lora_r": 8,
    "lora_target_modules": ["q_proj", "v_proj"],
    "save_strategy": "no",
}


def test_a_file_of_trl() -> None:
    found, recipe = imported(TRL, stage="sft")
    assert recipe == {
        "name": "theirs",
        "seed": 42,
        "model": {"base": "org/model", "dtype": "float32"},
        "parameterization": {
            "method": "lora",
            "lora": {"r": 8, "alpha": 32, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        },
        "trackers": ["wandb"],
        "stages": {
            "sft": {
                "data": "org/rows",
                "training": {
                    "max_steps": 5,
                    "warmup_steps": 2,
                    "learning_rate": 1e-3,
                    "per_device_train_batch_size": 4,
                    "save_strategy": "no",
                    "train_sampling_strategy": "random",
                    "logging_steps": 10,
                },
            }
        },
    }
    assert found.lost.keys() == {"assistant_only_loss"}, "where the rows are not here, nobody knows what is trained on"


def test_a_command_line_of_trl() -> None:
    text = (
        "#!/bin/bash\nexport X=1\ntrl dpo --model_name_or_path org/model \\\n  --dataset_name org/pairs --beta 0.2 "
        "--learning_rate=5e-6 \\\n  --use_peft --lora_target_modules q_proj v_proj --load-in-4bit  # four bits\n"
        "echo done\n"
    )
    found, recipe = imported(text, "train.sh")
    assert found.tool == "TRL" and not found.lost
    assert recipe["parameterization"] == {
        "method": "qlora",
        "lora": {"r": 16, "alpha": 32, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        "quantization": {"bits": 4, "bnb_4bit_use_double_quant": False},
    }
    dpo = recipe["stages"]["dpo"]
    assert (dpo["data"], dpo["beta"], dpo["training"]["learning_rate"]) == ("org/pairs", 0.2, 5e-6)


def test_a_command_with_a_file() -> None:
    Path("c.yaml").write_text(yaml.safe_dump(TRL))
    recipe = imported("trl sft --config c.yaml --max_steps 9\n", "train.sh")[1]
    assert recipe["stages"]["sft"]["training"]["max_steps"] == 9
    assert recipe["model"]["base"] == "org/model"


@pytest.mark.parametrize(
    ("given", "name", "sentence"),
    [
        (FACTORY | {"do_train": False, "do_predict": True}, "x.yaml", "'x.yaml' does not train"),
        (AXOLOTL | {"rl": "orpo"}, "x.yaml", "'x.yaml' trains by `rl: orpo`, which align does not have"),
        ({"model": "m", "train_dataset": "d"}, "x.yaml", "'x.yaml' is in the new format of LLaMA-Factory (v1)"),
        ({"a": 1}, "x.yaml", "it is not clear which tool 'x.yaml' is for"),
        ({"name": "x", "stages": {}}, "x.yaml", "'x.yaml' is a recipe of align already"),
        (
            {"model_name_or_path": "m", "learning_rate": 1},
            "x.yaml",
            "'x.yaml' does not say which trainer of TRL it is for",
        ),
        ("ls -l\n", "x.sh", "'x.sh' has no command line of TRL"),
        ("trl vllm-serve --model m\n", "x.sh", "'x.sh' has no command line of TRL"),
        ("a: [1\n", "x.yaml", "x.yaml:2:1: broken YAML"),
    ],
)
def test_what_cannot_be_imported_is_refused(given: dict[str, Any] | str, name: str, sentence: str) -> None:
    with pytest.raises(AlignError) as refused:
        imported(given, name)
    assert str(refused.value).startswith(sentence)
    assert not Path("recipe.yaml").exists()


def test_another_recipe_is_not_overwritten() -> None:
    first, _ = imported(AXOLOTL)
    translate.write(first, Path("recipe.yaml"))  # the same again
    other, _ = imported(AXOLOTL | {"lora_r": 32})
    with pytest.raises(AlignError, match=r"'recipe.yaml' already exists and differs"):
        translate.write(first, Path("recipe.yaml"))
    assert Path("recipe.yaml").read_text() == other.text


def test_what_is_imported_passes_the_check() -> None:
    rows = [{"instruction": f"Say {i}", "input": "", "output": str(i)} for i in range(30)]
    Path("rows.json").write_text(json.dumps(rows))
    here = {
        "base_model": str(MODEL_DIR),
        "datasets": [{"path": "rows.json", "type": "alpaca"}],
        "optimizer": "adamw_torch",
    }
    imported(AXOLOTL | here | {"special_tokens": None})
    found = api.check("recipe.yaml")
    assert [str(stage) for stage in found.stages] == ["sft: sft from base, lora, 25 rows, 5 held out"]


# What a file means, where its words alone do not tell -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "given", "completion_only"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, {}, False),
        ({"text": "a"}, {}, False),
        ({"prompt": "a", "completion": "b"}, {}, None),  # align's default, true, as TRL has it
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"assistant_only_loss": True},
            True,
        ),
        ({"prompt": "a", "completion": "b"}, {"completion_only_loss": False}, False),
    ],
)
def test_what_trl_trains_on_depends_on_the_rows(
    row: dict[str, Any], given: dict[str, Any], completion_only: bool | None
) -> None:
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    found, recipe = imported(TRL | given | {"dataset_name": "rows.jsonl"}, stage="sft")
    assert recipe["stages"]["sft"].get("completion_only_loss") == completion_only
    assert not found.lost


@pytest.mark.parametrize(
    "given",
    [
        FACTORY | {"stage": "rm", "val_size": None},
        AXOLOTL | {"reward_model": True},
        TRL | {"dataset_name": "org/pairs", "center_rewards_coefficient": None},
    ],
)
def test_a_reward_model_gets_no_regulariser_that_its_tool_has_not(given: dict[str, Any]) -> None:
    recipe = imported(given, stage="reward")[1]
    assert recipe["stages"]["reward"]["center_rewards_coefficient"] is None


def test_ppo_of_llama_factory() -> None:
    ppo = {"stage": "ppo", "reward_model": "org/reward", "max_new_tokens": 256, "ppo_target": 6.0}
    recipe = imported({k: v for k, v in FACTORY.items() if "eval" not in k and k != "val_size"} | ppo)[1]
    assert recipe["stages"]["ppo"]["reward"] == "org/reward"
    assert recipe["stages"]["ppo"]["kl"] == {"target": 6.0}
    assert recipe["stages"]["ppo"]["training"]["max_completion_length"] == 256


def test_the_defaults_of_trl_online() -> None:
    given = {"model_name_or_path": "org/m", "dataset_name": "org/p", "reward_model_name_or_path": "org/r"}
    training = imported(given | {"gradient_accumulation_steps": 8}, stage="grpo")[1]["stages"]["grpo"]["training"]
    assert (training["max_completion_length"], training["steps_per_generation"]) == (512, 8)
    assert training["lr_scheduler_type"] == "linear"


@pytest.mark.parametrize(
    ("changes", "training"),
    [
        ({"stage": "pt"}, {"packing": True}),
        ({"disable_shuffling": True}, {"train_sampling_strategy": "sequential"}),
        ({"bf16": None}, {"bf16": False}),
        ({"bf16": None, "fp16": True}, {"fp16": True}),
        ({"use_galore": True}, {"optim": "galore_adamw", "optim_args": "rank=16, update_proj_gap=200, scale=2.0"}),
        ({"enable_liger_kernel": True}, {"use_liger_kernel": True}),
    ],
)
def test_more_of_llama_factory(changes: dict[str, Any], training: dict[str, Any]) -> None:
    assert imported(FACTORY | changes)[1]["stages"]["sft"]["training"].items() >= training.items()


@pytest.mark.parametrize(
    ("changes", "training"),
    [
        ({"warmup_ratio": None}, {"warmup_steps": 0.03}),
        ({"sequence_len": None}, {"max_length": 512}),
        ({"num_epochs": 1, "evals_per_epoch": 1, "saves_per_epoch": 1}, {"save_strategy": "epoch"}),
        ({"max_steps": 100, "num_epochs": 4, "evals_per_epoch": 4}, {"max_steps": 100, "eval_steps": 0.0625}),
        ({"lr_scheduler": "rex"}, {"lr_scheduler_type": "cosine"}),
    ],
)
def test_more_of_axolotl(changes: dict[str, Any], training: dict[str, Any]) -> None:
    assert imported(AXOLOTL | changes)[1]["stages"]["sft"]["training"].items() >= training.items()


def test_weights_that_axolotl_trains_in_bfloat16() -> None:
    assert imported(AXOLOTL | {"adapter": None})[1]["model"]["dtype"] == "bfloat16"
    assert "dtype" not in imported(AXOLOTL)[1]["model"], "a frozen base is in bfloat16 anyhow"


def test_every_key_of_a_dataset_is_told() -> None:
    given = {"path": "json", "data_files": ["a.json", "b.json"], "type": "chat_template", "train_on_eos": "none"}
    found, recipe = imported(AXOLOTL | {"datasets": [given | {"roles_to_train": ["user"]}]})
    assert recipe["stages"]["sft"]["data"] == ["a.json", "b.json"]
    assert {"datasets: train_on_eos", "datasets: roles_to_train"} <= found.lost.keys()
    held = imported(AXOLOTL | {"test_datasets": {"path": "org/t", "split": "test", "type": "chat_template"}})[1]
    assert held["stages"]["sft"]["eval_data"] == {"source": "org/t", "split": "test"}


@pytest.mark.parametrize(
    ("name", "content", "launch"),
    [
        ("zero2.json", None, {"zero_stage": 2}),
        ("ds_config_v3_stage2.json", None, {"zero_stage": 2}),
        ("zero3_bf16_cpuoffload_all.json", None, {"zero_stage": 3, "offload_optimizer": True}),
        ("mine.json", {"zero_optimization": {"stage": 3}, "train_batch_size": 2}, {"zero_stage": 3}),
        ("zero1.json", None, None),
    ],
)
def test_what_a_deepspeed_file_says(name: str, content: Any, launch: dict[str, Any] | None) -> None:
    if content:
        Path(name).write_text(json.dumps(content))
    found, recipe = imported(AXOLOTL | {"deepspeed": name, "optimizer": "adamw_torch"}, processes=8)
    assert recipe.get("launch") == (launch and {"engine": "deepspeed", "processes": 8, **launch})
    assert ("deepspeed" in found.lost) == (launch is None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trl sft --model_name_or_path m --dataset_name d --use_peft False", {"method": "full"}),
        ("trl sft --model_name_or_path m --dataset_name d --no_bf16 2>&1 | tee log", {"bf16": False}),
        (
            "pip install trl\n# trl dpo\ntrl sft --model_name_or_path m --dataset_name d --packing true",
            {"packing": True},
        ),
        (
            "accelerate launch --num_processes 8 trl/scripts/sft.py --model_name_or_path m --dataset_name d",
            {"processes": 8},
        ),
        ("python -m trl.scripts.sft --model_name_or_path m --dataset_name d && echo done", {"method": "full"}),
        (
            "trl sft --model_name_or_path m --dataset_name d --gradient_checkpointing_kwargs '{\"a\": false}'",
            {"method": "full"},
        ),
    ],
)
def test_command_lines(line: str, expected: dict[str, Any]) -> None:
    recipe = imported(line + "\n", "train.sh")[1]
    flat = {**recipe["parameterization"], **recipe["stages"]["sft"]["training"], **recipe.get("launch", {})}
    assert flat.items() >= expected.items()


@pytest.mark.parametrize(
    ("given", "name", "sentence"),
    [
        ("trl sft --model_name_or_path $M\n", "x.sh", "the command line has a variable of the shell: $M"),
        ("trl sft --run_name 'a\n", "x.sh", "the command line is not well-formed"),
        (FACTORY | {"stage": "dpo", "pref_loss": "orpo"}, "x.yaml", "'x.yaml' trains by `pref_loss: orpo`"),
        (FACTORY | {"stage": "grow"}, "x.yaml", "'x.yaml' trains by `stage: grow`"),
        (FACTORY | {"val_size": "10%"}, "x.yaml", "'x.yaml' has a value of a kind"),
        (AXOLOTL | {"rl": ["dpo"]}, "x.yaml", "`rl` of 'x.yaml' is not a name"),
        (AXOLOTL | {"adapter": "dora"}, "x.yaml", "there is no adapter 'dora' here"),
        ("- a\n", "x.yaml", ""),
        ("", "x.yaml", ""),
    ],
)
def test_odd_files_are_refused_in_a_sentence(given: dict[str, Any] | str, name: str, sentence: str) -> None:
    with pytest.raises(AlignError) as refused:
        imported(given, name)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    "changes",
    [
        {"special_tokens": ["<pad>"]},
        {"special_tokens": "<pad>"},
        {"val_set_size": "5%"},
        {"micro_batch_size": 0, "batch_size": 8, "gradient_accumulation_steps": None},
        {"plugins": "axolotl.integrations.liger.LigerPlugin"},
        {"revision_of_model": 12345678},
        {"wandb_name": "my first run/2"},
    ],
)
def test_odd_values_do_no_harm(changes: dict[str, Any]) -> None:
    with contextlib.suppress(AlignError):  # of align's own checks
        imported(AXOLOTL | changes)


def test_files_of_trl_that_do_not_tell_are_asked_about() -> None:
    given = {"model_name_or_path": "m", "dataset_name": "d"}
    assert (
        "kto" in imported(given | {"desirable_weight": 2.0, "beta": 0.2, "per_device_train_batch_size": 4})[1]["stages"]
    )
    assert "sft" in imported(given | {"packing": True})[1]["stages"]
    with pytest.raises(AlignError, match="does not say which trainer"):
        imported(given | {"beta": 0.2})


def test_kto_by_ones_is_done_by_twos() -> None:
    given = {"model_name_or_path": "m", "dataset_name": "d", "per_device_train_batch_size": 1}
    found, recipe = imported(given | {"gradient_accumulation_steps": 8}, stage="kto")
    training = recipe["stages"]["kto"]["training"]
    assert (training["per_device_train_batch_size"], training["gradient_accumulation_steps"]) == (2, 4)
    assert found.lost["per_device_train_batch_size"].endswith("two at a time, and half as many times")
