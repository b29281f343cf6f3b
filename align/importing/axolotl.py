"""Axolotl: `axolotl train FILE`. Names and defaults as of its release 0.19 (src/axolotl/utils/schemas)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from align.errors import AlignError
from align.importing import axolotl_data, shared
from align.importing.draft import Draft
from align.parameterization import method as methods
from align.recipe.from_flags import word

NAME: Final = "Axolotl"
_METHODS: Final = {"dpo": "dpo", "ipo": "dpo", "kto": "kto", "grpo": "grpo"}
_RENAMED: Final = {  # what is only called otherwise
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "sequence_len": "max_length",
    "sample_packing": "packing",
    "eval_sample_packing": "eval_packing",
    "lr_scheduler_kwargs": "lr_scheduler_kwargs",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "adam_eps": "adam_epsilon",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "evaluation_strategy": "eval_strategy",
}
_LIGER: Final = (
    "liger_rope liger_rms_norm liger_rms_norm_gated liger_layer_norm liger_glu_activation "
    "liger_fused_linear_cross_entropy"
)
_KERNELS: Final = (
    "lora_mlp_kernel lora_qkv_kernel lora_o_kernel use_kernels use_scattermoe use_sonicmoe flash_attn_cross_entropy "
    "flash_attn_rms_norm flash_attn_fuse_mlp cut_cross_entropy torch_compile torch_compile_mode fused_attn_kernel "
    "tiled_mlp use_glm_dsa_kernels use_onebitllms flex_attn_compile_kwargs experts_implementation flash_optimum"
)
_UNLIKE: Final = (
    "ebft vllm diffusion relora lisa_n_layers lisa_step_interval lisa_layers_attribute early_stopping_patience "
    "unfrozen_parameters use_eaft eaft_alpha eaft_k llmcompressor use_ray ray_num_workers streaming reinit_weights "
    "quantize_moe_experts process_reward_model tokens added_tokens_overrides model_config cls_model_config "
    "model_quantization_config model_quantization_config_kwargs gptq curriculum_sampling lora_model_dir peft "
    "expert_parallel_size tensor_parallel_size context_parallel_size dp_shard_size dp_replicate_size orpo_alpha "
    "cosine_constant_lr_ratio lr_quadratic_warmup sample_packing_sequentially dataset_exact_deduplication"
)


def fits(given: dict[str, Any]) -> bool:
    """Whether a file is one of this tool."""
    return "base_model" in given and bool({"micro_batch_size", "sequence_len", "datasets"} & given.keys())


def translate(given: dict[str, Any], file: Path, processes: int | None) -> Draft:
    """The recipe that does what the file does.

    Raises:
        AlignError: it trains by a method that align does not have.
    """
    kind = given.get("rl")
    if kind is not None and not isinstance(kind, str):
        raise AlignError(f"`rl` of '{file}' is not a name", f"it is one of {', '.join(_METHODS)}")
    stage = "reward" if given.get("reward_model") is True else _METHODS.get(str(kind), "sft")
    if (kind and kind not in _METHODS) or given.get("process_reward_model"):
        method = f"rl: {kind}" if kind else "process_reward_model"
        known = ", ".join(f"rl: {name}" for name in _METHODS)
        raise AlignError(
            f"'{file}' trains by `{method}`, which align does not have", f"it has SFT, reward models, {known}"
        )
    draft = Draft(NAME, given, stage)
    name = draft.get("wandb_name") or draft.get("trackio_run_name") or file.stem
    draft.put("name", word(str(name)), "wandb_name", "trackio_run_name")
    draft.put("seed", draft.get("seed", 42), "seed")
    draft.mapped |= {key: f"stages.{stage}" for key in ("rl", "reward_model") if key in given}
    shared.sort_out(draft)
    _model(draft)
    _method(draft)
    axolotl_data.translate(draft)
    _loss(draft, str(kind))
    _processes(draft, processes, file)
    _training(draft)
    _plugins(draft)
    swanlab = [key for key in given if "swanlab" in key]
    draft.lose(f"trackers are {', '.join(shared.TRACKERS)}", *swanlab)
    draft.lose("align has nothing of the kind", *_UNLIKE.split())
    draft.arguments()
    return draft


def _model(draft: Draft) -> None:
    draft.put("model.base", draft.get("base_model"), "base_model")
    draft.leave("it is that of the base", "base_model_config", "tokenizer_config", "base_model_ignore_patterns")
    if draft.get("revision_of_model"):
        draft.put("model.revision", draft.get("revision_of_model"), "revision_of_model")
    if draft.get("trust_remote_code"):
        draft.leave("only a model with code of its own needs it: `model.trust_remote_code`", "trust_remote_code")
    attention = draft.get("attn_implementation")
    if attention is None:
        flags = {"flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "flex_attention": "flex_attention"}
        attention = next((ours for key, ours in flags.items() if draft.get(key)), None)
    if attention in ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"):
        draft.put("model.attn_implementation", attention, "attn_implementation", "flash_attention", "sdp_attention")
    draft.lose("transformers has no such attention", "attn_implementation", "xformers_attention")
    given = draft.get("special_tokens", {})
    if not isinstance(given, dict):
        draft.lose("it is no mapping of tokens by name", "special_tokens")
        given = {}
    tokens = dict(given)
    for name in ("eos_token", "pad_token"):
        if tokens.pop(name, None):
            draft.put(f"model.{name}", given[name], "special_tokens")
    if tokens:
        named = ", ".join(tokens)
        draft.mapped.pop("special_tokens", None)
        draft.lost["special_tokens"] = f"only eos_token and pad_token can be set; {named} are those of the tokenizer"
    draft.leave("none is set", "special_tokens")
    if draft.get("chat_template", "tokenizer_default") == "tokenizer_default":
        draft.leave("the model's own chat template is used", "chat_template")
    draft.lose(shared.TEMPLATE, "chat_template")
    draft.lose("write it to a .jinja file, and name that in `model.chat_template`", "chat_template_jinja")
    draft.leave("the end of a turn is found in the chat template", "eot_tokens")
    if draft.get("torch_dtype"):
        draft.put("model.dtype", shared.dtype(draft.get("torch_dtype")), "torch_dtype")


def _method(draft: Draft) -> None:
    adapter = draft.get("adapter")
    bits = 4 if draft.get("load_in_4bit") or adapter == "qlora" else 8 if draft.get("load_in_8bit") else None
    if adapter in ("lora", "qlora"):
        all_linear = draft.get("lora_target_linear") or not draft.get("lora_target_modules")
        values = {
            "r": draft.get("lora_r", 8),
            "alpha": draft.get("lora_alpha", 16),
            "dropout": draft.get("lora_dropout", 0.0),
            "target_modules": None if all_linear else draft.get("lora_target_modules"),
            "use_dora": draft.get("peft_use_dora") or None,
            "use_rslora": draft.get("peft_use_rslora") or None,
            "modules_to_save": draft.get("lora_modules_to_save"),
            "layers_to_transform": draft.get("peft_layers_to_transform"),
            "target_parameters": draft.get("lora_target_parameters"),
        }
        named = {
            "lora_r": "r",
            "lora_alpha": "alpha",
            "lora_dropout": "dropout",
            "lora_target_linear": "target_modules",
        }
        named |= {"peft_use_dora": "use_dora", "peft_use_rslora": "use_rslora", "lora_target_modules": "target_modules"}
        named |= {"lora_modules_to_save": "modules_to_save", "lora_target_parameters": "target_parameters"}
        named |= {"peft_layers_to_transform": "layers_to_transform"}
        modules = values["target_modules"]
        if isinstance(modules, str):
            draft.lose("write the names of modules, not a pattern", "lora_target_modules")
            values["target_modules"] = None
        shared.lora(draft, bits, values, "adapter", "load_in_4bit", "load_in_8bit")
        there = {key: name for key, name in named.items() if key in draft.open and draft.get(key) is not None}
        draft.mapped |= {key: f"parameterization.lora.{name}" for key, name in there.items()}
        draft.leave("it is found in the model", "lora_fan_in_fan_out")
    elif adapter is None:
        draft.put("parameterization.method", "full", "adapter")
        if draft.get("bf16", draft.get("bfloat16")) in ("auto", True) and not draft.has("model.dtype"):
            draft.put("model.dtype", "bfloat16", "bf16", "bfloat16")  # Axolotl trains the weights in it
        draft.leave(
            "all weights are trained",
            *(key for key in draft.given if key.startswith("lora_") and key != "lora_model_dir"),
        )
        draft.lose("full training needs a base that is not quantized", "load_in_4bit", "load_in_8bit")
    else:
        try:
            methods.load(str(adapter))
        except AlignError:
            raise AlignError(f"there is no adapter '{adapter}' here", "align list shows the methods") from None
        draft.put("parameterization.method", adapter, "adapter")
    draft.leave("it is off", "load_in_4bit", "load_in_8bit")


# The loss and the training -------------------------------------------------------------------------------------------


def _loss(draft: Draft, kind: str) -> None:
    beta = next((key for key in ("rl_beta", "dpo_beta") if draft.get(key) is not None), "rl_beta")
    if draft.stage in ("dpo", "kto"):
        draft.put(".beta", draft.get(beta, 0.1), beta)
    if draft.stage == "dpo":
        alpha = draft.get("rpo_alpha")
        loss = "ipo" if kind == "ipo" else "sigmoid"
        draft.put(".loss_type", [loss, "sft"] if alpha else loss)
        if alpha:
            draft.put(".loss_weights", [1.0, alpha], "rpo_alpha")
    if draft.stage == "kto":
        for key in ("desirable_weight", "undesirable_weight"):
            if draft.get(f"kto_{key}") is not None:
                draft.put(f".{key}", draft.get(f"kto_{key}"), f"kto_{key}")
    settings = draft.get("trl", {})
    if isinstance(settings, dict) and draft.stage == "grpo":
        for key, value in settings.items():
            _of_trl(draft, key, value)
        draft.leave("each of its keys is dealt with", "trl")
    draft.lose("these settings are of reinforcement learning", "trl")


def _of_trl(draft: Draft, key: str, value: Any) -> None:
    """A key of `trl:`, by the names of TRL's GRPOConfig."""
    whole = f"trl.{key}"
    if key in ("reward_funcs", "reward_weights"):
        draft.lost[whole] = "write the function as `reward: ./rewards.py:name`, and weights beside it"
        return
    draft.given[whole] = value
    draft.argument(key, value, whole)


def _training(draft: Draft) -> None:
    for theirs, ours in _RENAMED.items():
        if draft.get(theirs) is not None and theirs not in draft.mapped:
            draft.argument(ours, draft.get(theirs), theirs)
    if draft.get("batch_size") and not draft.get("gradient_accumulation_steps"):
        each = max(1, draft.get("batch_size") // max(1, draft.get("micro_batch_size", 1)))
        draft.argument("gradient_accumulation_steps", each, "batch_size")
    draft.leave("`gradient_accumulation_steps` says it", "batch_size")
    shared.steps(draft)
    if draft.get("num_epochs") is not None and "num_epochs" in draft.open:
        draft.argument("num_train_epochs", draft.get("num_epochs"), "num_epochs")
    if draft.get("warmup_steps") is None and draft.get("warmup_ratio") is None:
        draft.argument("warmup_steps", 0.03)  # of all steps, and there at most 100
    else:
        shared.warmup(draft)
    if draft.get("optimizer"):
        optimizer = {"adamw_8bit": "adamw_bnb_8bit"}.get(draft.get("optimizer"), draft.get("optimizer"))
        draft.argument("optim", optimizer, "optimizer")
    _schedule(draft)
    draft.lose("rows that are longer than `max_length` are cut", "excess_length_strategy")
    if draft.get("group_by_length"):
        draft.argument("train_sampling_strategy", "group_by_length", "group_by_length")
    if draft.get("gradient_checkpointing") == "offload":
        draft.put("training.gradient_checkpointing", True, "gradient_checkpointing")
        draft.lost["gradient_checkpointing"] = "activations are recomputed, but not kept in main memory meanwhile"
    _precision(draft)
    _how_often(draft)
    draft.arguments()
    shared.defaults(
        draft,
        learning_rate=5e-5,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        **({} if draft.has("training.max_steps") else {"num_train_epochs": 1}),
        gradient_checkpointing=False,
        train_sampling_strategy="random",
        max_length=512,
    )
    shared.of_tool(draft, lr_scheduler_type="cosine")
    shared.two_at_a_time(draft)
    wandb = [key for key in draft.given if key.startswith("wandb_") or key == "use_wandb"]
    if draft.get("wandb_project") or draft.get("use_wandb"):
        draft.put("trackers", ["wandb"], "use_wandb", "wandb_name")
        draft.leave(
            "set WANDB_PROJECT, WANDB_ENTITY and the like in the environment", *(k for k in wandb if k in draft.open)
        )
    draft.leave("no tracker is named", *(key for key in wandb if key in draft.open))
    for name, key in (
        ("tensorboard", "use_tensorboard"),
        ("trackio", "trackio_project_name"),
        ("mlflow", "use_mlflow"),
    ):
        if draft.get(key):
            draft.put("trackers", [*draft.recipe.get("trackers", []), name], key)


def _schedule(draft: Draft) -> None:
    ratio = draft.get("cosine_min_lr_ratio")
    if ratio and draft.get("lr_scheduler", "cosine") == "cosine":
        draft.put("training.lr_scheduler_type", "cosine_with_min_lr", "lr_scheduler", "cosine_min_lr_ratio")
        draft.put("training.lr_scheduler_kwargs", {"min_lr_rate": ratio})
    else:
        draft.argument("lr_scheduler_type", draft.get("lr_scheduler", "cosine"), "lr_scheduler")
        if not draft.has("training.lr_scheduler_type"):
            draft.put("training.lr_scheduler_type", "cosine")
    draft.lose(
        "write `lr_scheduler_type: cosine_with_min_lr` with `lr_scheduler_kwargs`", "cosine_min_lr_ratio", "eta_min"
    )


def _precision(draft: Draft) -> None:
    for key, ours in (("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16"), ("float16", "fp16")):
        if draft.get(key) in ("auto", None):
            draft.leave("bfloat16 is used where the machine has it", key)
        elif draft.get(key) == "full":
            draft.put("model.dtype", "bfloat16", key)
        elif draft.get(key):
            draft.argument(ours, True, key)
        else:
            draft.leave("it is off", key)
    if draft.get("tf32") in ("auto", None, False):
        draft.leave("it is off", "tf32")


def _how_often(draft: Draft) -> None:
    """Axolotl counts evaluations and checkpoints by epoch; transformers takes shares of all steps."""
    if not draft.has(".eval_data"):
        shared.evaluation(
            draft, "evals_per_epoch", "eval_steps", "eval_strategy", "eval_batch_size", "evaluation_strategy"
        )
        draft.leave("no rows are held out", "eval_table_size", "eval_max_new_tokens")
    for key, ours in (("evals_per_epoch", "eval"), ("saves_per_epoch", "save")):
        often = draft.get(key)
        if not often or key not in draft.open:
            draft.leave("it is off", key)
            continue
        share = round(1 / (often * float(draft.get("num_epochs", 1))), 4)
        if share >= 1:  # no more than once: Axolotl saves by epoch then, and evaluates nothing
            if ours == "eval":
                draft.leave("with one evaluation in all, Axolotl makes none", key)
            else:
                draft.argument("save_strategy", "epoch", key)
            continue
        if ours == "eval":
            draft.argument("eval_strategy", "steps")
        draft.argument(f"{ours}_steps", share, key)


def _plugins(draft: Draft) -> None:
    given = draft.get("plugins", [])
    plugins = [str(name).rpartition(".")[2] for name in (given if isinstance(given, list) else [given])]
    liger = [key for key in _LIGER.split() if draft.get(key)]
    if "LigerPlugin" in plugins or liger:
        draft.argument("use_liger_kernel", True, "plugins", *liger)
    others = [name for name in plugins if name != "LigerPlugin"]
    if others:
        draft.mapped.pop("plugins", None)
        draft.lost["plugins"] = f"align has no {', '.join(others)}"
    draft.leave("it is off", "plugins", *_LIGER.split())
    draft.lose("align has no such kernels", *_KERNELS.split())


def _processes(draft: Draft, processes: int | None, file: Path) -> None:
    if draft.get("deepspeed"):
        shared.deepspeed(draft, processes, file)
    elif draft.get("fsdp") or draft.get("fsdp_config") or draft.get("fsdp_version"):
        shared.launch(draft, processes, "fsdp", None, "fsdp", "fsdp_config", "fsdp_version")
        settings = draft.get("fsdp_config")
        if processes is not None and isinstance(settings, dict) and settings.get("offload_params"):
            draft.lost["fsdp_config: offload_params"] = "weights are not offloaded"
    elif processes is not None:
        draft.put("launch.processes", processes)
    draft.leave("it is off", "fsdp", "fsdp_config", "deepspeed")
    draft.leave(
        "a reward model has one score, and HF_TOKEN stands in the environment", "num_labels", "hf_use_auth_token"
    )
    draft.leave("DDP is set up by accelerate", "ddp_find_unused_parameters", "ddp", "local_rank")
