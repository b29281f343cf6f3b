"""LLaMA-Factory: `llamafactory-cli train FILE`. Names and defaults as of release 0.9.5 (src/llamafactory/hparams)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from align.errors import AlignError, did_you_mean
from align.importing import shared
from align.importing.draft import Draft
from align.recipe.from_flags import word

NAME: Final = "LLaMA-Factory"
_STAGES: Final = {"pt": "sft", "sft": "sft", "rm": "reward", "ppo": "ppo", "dpo": "dpo", "kto": "kto"}
_LOSSES: Final = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo"}
_COLUMNS: Final = {  # of dataset_info.json: what the field is called here
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "messages",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
    "text": "text",
}
_UNLIKE: Final = (
    "use_badam use_adam_mini use_muon use_llama_pro mixture_of_depths use_dft_loss use_asft_loss asft_alpha "
    "use_eaft_loss eaft_alpha loraplus_lr_ratio loraplus_lr_embedding pissa_init pissa_iter pissa_convert use_kt "
    "kt_config kt_cpu_activation kt_weight_path kt_non_expert_weight_path use_unsloth use_mca use_hyper_parallel "
    "rope_scaling shift_attn use_v1_kernels add_tokens add_special_tokens new_special_tokens_config "
    "early_stopping_steps simpo_gamma pref_bco_weight ref_model ref_model_adapters ray_num_workers streaming "
    "moe_aux_loss_coef"
)


def fits(given: dict[str, Any]) -> bool:
    """Whether a file is one of this tool."""
    return "model_name_or_path" in given and bool(
        {"finetuning_type", "template", "cutoff_len", "dataset"} & given.keys()
    )


def translate(given: dict[str, Any], file: Path, processes: int | None) -> Draft:
    """The recipe that does what the file does.

    Raises:
        AlignError: it only evaluates, predicts or merges.
    """
    if not given.get("do_train", "dataset" in given):
        raise AlignError(f"'{file}' does not train", "give a file that `llamafactory-cli train` trains with")
    stage, loss = str(given.get("stage", "sft")), given.get("pref_loss", "sigmoid")
    if stage not in _STAGES:
        raise AlignError(
            f"'{file}' trains by `stage: {stage}`, which align does not have", did_you_mean(stage, _STAGES)
        )
    if stage == "dpo" and loss not in _LOSSES:
        known = ", ".join(_LOSSES)
        raise AlignError(f"'{file}' trains by `pref_loss: {loss}`, which align does not have", f"it has {known}")
    draft = Draft(NAME, given, _STAGES[stage])
    draft.put("name", word(str(draft.get("run_name", file.stem))), "run_name")
    draft.put("seed", draft.get("seed", 42), "seed")
    draft.mapped |= {key: f"stages.{draft.stage}" for key in ("stage",) if key in given}
    shared.sort_out(draft)
    _model(draft)
    _method(draft)
    _data(draft, file)
    _loss(draft)
    _processes(draft, processes, file)
    _training(draft)
    draft.lose("align has nothing of the kind", *_UNLIKE.split(), *(key for key in given if key.startswith("badam_")))
    draft.arguments()
    return draft


def _model(draft: Draft) -> None:
    draft.put("model.base", draft.get("model_name_or_path"), "model_name_or_path")
    if draft.get("model_revision", "main") != "main":
        draft.put("model.revision", draft.get("model_revision"), "model_revision")
    if draft.get("trust_remote_code"):
        draft.leave("only a model with code of its own needs it: `model.trust_remote_code`", "trust_remote_code")
    attention = draft.get("flash_attn", "auto")
    if attention != "auto":
        draft.put("model.attn_implementation", shared.ATTENTION.get(attention, attention), "flash_attn")
    draft.leave("transformers chooses", "flash_attn")
    if draft.get("pure_bf16"):
        draft.put("model.dtype", "bfloat16", "pure_bf16")
    draft.lose(
        shared.TEMPLATE,
        "template",
    )
    draft.leave("reasoning is trained as the chat template writes it", "enable_thinking")
    draft.lose("merge the adapter into the base first: `align merge`", "adapter_name_or_path", "create_new_adapter")


def _method(draft: Draft) -> None:
    kind, bits = draft.get("finetuning_type", "lora"), draft.get("quantization_bit")
    keys = ("finetuning_type", "quantization_bit")
    if kind == "lora":
        rank = draft.get("lora_rank", 8)
        saved = shared.modules(draft.get("additional_target")) if draft.get("additional_target") else None
        values = {
            "r": rank,
            "alpha": draft.get("lora_alpha", 2 * rank),
            "dropout": draft.get("lora_dropout", 0.0),
            "target_modules": shared.modules(draft.get("lora_target", "all")),
            "use_dora": draft.get("use_dora") or None,
            "use_rslora": draft.get("use_rslora") or None,
            "modules_to_save": saved,
        }
        shared.lora(draft, bits if bits in (4, 8) else None, values, "finetuning_type")
        named = {"lora_rank": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "lora_target": "target_modules"}
        named |= {"use_dora": "use_dora", "use_rslora": "use_rslora", "additional_target": "modules_to_save"}
        draft.mapped |= {key: f"parameterization.lora.{name}" for key, name in named.items() if key in draft.given}
        _quantized(draft, bits)
    elif kind == "full":
        draft.put("parameterization.method", "full", "finetuning_type")
        draft.lose("full training needs a base that is not quantized", "quantization_bit")
    elif kind == "oft":
        draft.put("parameterization.method", "oft", "finetuning_type")
        draft.put("parameterization.peft.oft_block_size", draft.get("oft_block_size", 32), "oft_block_size")
        targets = shared.modules(draft.get("oft_target", "all"))
        if targets != "auto":
            draft.put("parameterization.peft.target_modules", targets, "oft_target")
        draft.leave("every linear layer is the default", "oft_target")
        draft.lose("OFT trains on a base that is not quantized here", "quantization_bit")
    else:
        draft.put("parameterization.method", "spectrum", "finetuning_type")
        layers = "`parameterization.layers_to_finetune: [30, 31]`"
        why = f"name the layers: {layers}; by default the signal-to-noise ratio chooses"
        draft.lose(why, "freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")
        if "freeze_trainable_layers" not in draft.given:
            draft.lost["freeze_trainable_layers"] = f"the last 2 are trained by default there; {why}"
        draft.lose("the base is not quantized", "quantization_bit")
    draft.lose("it goes with LoRA alone", *(key for key in keys if key in draft.open))


def _quantized(draft: Draft, bits: Any) -> None:
    if bits in (4, 8):
        draft.put("parameterization.quantization.bits", bits, "quantization_bit")
        kind = draft.get("quantization_type")
        if kind is not None and bits == 4:
            draft.put("parameterization.quantization.bnb_4bit_quant_type", kind, "quantization_type")
        double = draft.get("double_quantization")
        if double is not None and bits == 4:
            draft.put("parameterization.quantization.bnb_4bit_use_double_quant", double, "double_quantization")
        draft.lose("it is of 4 bits", "quantization_type", "double_quantization")
    elif bits is not None:
        draft.lose("bases are quantized to 4 or 8 bits", "quantization_bit")
    if draft.get("quantization_method", "bnb") in ("bnb", "bitsandbytes"):
        draft.leave("bitsandbytes quantizes", "quantization_method")
    draft.lose("bitsandbytes quantizes", "quantization_method")


# Data --------------------------------------------------------------------------------------------------------------


def _data(draft: Draft, file: Path) -> None:
    info = _dataset_info(str(draft.get("dataset_dir", "data")), file)
    names = _names(draft.get("dataset"))
    sources = [_source(draft, name, info) for name in names]
    shares = _names(draft.get("interleave_probs"))
    if draft.get("mix_strategy", "concat") == "interleave_under" and len(shares) == len(sources):
        for source, share in zip(sources, shares, strict=True):
            source["weight"] = float(share)
        draft.mapped |= {
            key: draft.place(".data") for key in ("mix_strategy", "interleave_probs") if key in draft.given
        }
    draft.leave(
        "one source after the other is the default",
        *(["mix_strategy"] if draft.get("mix_strategy") == "concat" else []),
    )
    draft.lose(
        "`weight` mixes until one source is used up, as `interleave_under` does", "mix_strategy", "interleave_probs"
    )
    if sources:
        draft.put(".data", shared.short(sources), "dataset", "dataset_dir", "max_samples")
    else:
        draft.lose("name the data: `stages." + draft.stage + ".data`", "dataset", "dataset_dir", "max_samples")
    held, share = [_source(draft, name, info) for name in _names(draft.get("eval_dataset"))], draft.get("val_size", 0)
    if held:
        draft.put(".eval_data", shared.short(held), "eval_dataset")
    elif share:
        draft.put(".eval_data", share if share < 1 else int(share), "val_size")
    elif draft.stage == "reward":
        draft.put(".eval_data", 0, "val_size")
    draft.leave("no rows are held out", "val_size", "eval_dataset")
    draft.argument("max_length", draft.get("cutoff_len", 2048), "cutoff_len")
    if draft.stage == "sft":
        if draft.get("train_on_prompt"):
            draft.put(".completion_only_loss", False, "train_on_prompt")
        if draft.get("mask_history"):
            draft.put(".turns", "last", "mask_history")


def _dataset_info(folder: str, file: Path) -> tuple[Path | None, dict[str, Any]]:
    """dataset_info.json and its folder, looked for from the current folder and from those above the file."""
    for above in (Path(), *file.absolute().parents):
        path = above / folder / "dataset_info.json"
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise AlignError(f"'{path}' is not JSON: {error}", "mend it, or name the data in the recipe") from None
            return path.parent, found if isinstance(found, dict) else {}
    return None, {}


def _names(given: Any) -> list[str]:
    """A list, or names between commas."""
    if isinstance(given, str):
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(name) for name in given] if isinstance(given, list) else [] if given is None else [str(given)]


def _source(draft: Draft, name: str, info: tuple[Path | None, dict[str, Any]]) -> dict[str, Any]:
    """A data set as a source of a recipe."""
    folder, sets = info
    entry = sets.get(name)
    source: dict[str, Any] = {}
    if entry is None:
        source["source"] = name
        where = "is not in dataset_info.json" if folder else "stands in a dataset_info.json that was not found"
        draft.lost[f"dataset: {name}"] = f"it {where}: write its file, or its name on the Hub, in `data`"
    elif "hf_hub_url" in entry:
        source["source"] = entry["hf_hub_url"]
    elif "file_name" in entry:
        source["source"] = str(Path(folder or "") / str(entry["file_name"]))
    else:
        source["source"] = name
        given = ", ".join(key for key in entry if "url" in key or key == "cloud_file_name") or "neither file nor URL"
        draft.lost[f"dataset: {name}"] = f"it has {given}: write its file, or its name on the Hub, in `data`"
    if entry and entry.get("tags"):
        usual = {"role", "content", "from", "value", "user", "assistant", "human", "gpt", "system", "observation"}
        other = [str(tag) for tag in entry["tags"].values() if tag not in usual | {"function_call"}]
        if other:
            draft.lost[f"dataset: {name}: tags"] = (
                f"messages have role and content, or from and value, not {', '.join(other)}"
            )
    if entry:
        source |= {key: entry[key] for key in ("subset", "split") if entry.get(key)}
        if draft.given.get("stage") == "pt":  # of a plain text, the prompt is all there is
            entry = {**entry, "columns": {"text": entry.get("columns", {}).get("prompt", "text")}}
        columns = {
            _COLUMNS[theirs]: ours for theirs, ours in (entry.get("columns") or {}).items() if theirs in _COLUMNS
        }
        columns = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
        if columns.get("messages") in ("conversations", "conversation"):
            del columns["messages"]  # read by that name too
        if columns:
            source["columns"] = columns
    limits = [limit for limit in (draft.get("max_samples"), (entry or {}).get("num_samples")) if limit]
    if limits:
        source["limit"] = min(limits)
    return source


# The loss and the training -------------------------------------------------------------------------------------------


def _loss(draft: Draft) -> None:
    loss, ftx = draft.get("pref_loss", "sigmoid"), draft.get("pref_ftx", 0.0)
    if draft.stage == "dpo":
        draft.put(".beta", draft.get("pref_beta", 0.1), "pref_beta")
        if loss in _LOSSES:
            draft.put(".loss_type", [loss, "sft"] if ftx else loss, "pref_loss")
            if ftx:
                draft.put(".loss_weights", [1.0, ftx], "pref_ftx")
        draft.lose(
            "label smoothing of the sigmoid loss is `loss_type: robust` here, which is another formula",
            "dpo_label_smoothing",
        )
    elif draft.stage == "kto":
        draft.put(".beta", draft.get("pref_beta", 0.1), "pref_beta")
        draft.lose("the loss of SFT is not added to KTO's here", "pref_ftx")
        for key, ours in (("kto_chosen_weight", "desirable_weight"), ("kto_rejected_weight", "undesirable_weight")):
            if key in draft.given:
                draft.put(f".{ours}", draft.get(key), key)
    elif draft.stage == "ppo":
        if draft.get("reward_model"):
            draft.put(".reward", draft.get("reward_model"), "reward_model")
        if draft.get("ppo_target"):
            draft.put(".kl.target", draft.get("ppo_target"), "ppo_target")
        draft.lose("PPO of align has its own settings: docs/ppo.md", "ppo_buffer_size", "ppo_epochs", "ppo_score_norm")
        draft.lose("PPO of align has its own settings: docs/ppo.md", "ppo_whiten_rewards", "reward_model_type")
        for key, ours in (
            ("max_new_tokens", "max_completion_length"),
            ("top_p", "top_p"),
            ("temperature", "temperature"),
        ):
            if key in draft.given:
                draft.argument(ours, draft.get(key), key)
    draft.leave(
        "it is of another stage", "pref_beta", "pref_loss", "pref_ftx", "kto_chosen_weight", "kto_rejected_weight"
    )
    draft.leave("it concerns chatting, not training", "max_new_tokens", "top_p", "temperature", "top_k")


def _training(draft: Draft) -> None:
    shared.steps(draft)
    shared.warmup(draft)
    checkpointing = not draft.get("disable_gradient_checkpointing", False)
    draft.argument("gradient_checkpointing", checkpointing, "disable_gradient_checkpointing")
    if "use_reentrant_gc" in draft.given:
        kwargs = {"use_reentrant": draft.get("use_reentrant_gc")}
        draft.argument("gradient_checkpointing_kwargs", kwargs, "use_reentrant_gc")
    for name in ("galore", "apollo"):
        _low_rank(draft, name)
    if draft.get("enable_liger_kernel"):
        draft.argument("use_liger_kernel", True, "enable_liger_kernel")
    if draft.get("neat_packing") or draft.get("packing", draft.get("stage") == "pt"):
        draft.argument("packing", True, "packing", "neat_packing")
    shared.trackers(draft, draft.get("report_to", "none"), "report_to")
    if draft.get("use_swanlab"):
        draft.lose(f"trackers are {', '.join(shared.TRACKERS)}", *(k for k in draft.given if k.endswith("swanlab")))
    shared.evaluation(draft, "eval_strategy", "eval_steps", "per_device_eval_batch_size", "evaluation_strategy")
    if draft.get("bf16") is False and not draft.get("fp16"):
        draft.argument("bf16", False, "bf16")
    draft.arguments()
    shared.defaults(
        draft,
        learning_rate=5e-5,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        **({} if draft.has("training.max_steps") else {"num_train_epochs": 3.0}),
        train_sampling_strategy="sequential" if draft.get("disable_shuffling") else "random",
        **({} if draft.get("bf16") or draft.get("fp16") or draft.get("pure_bf16") else {"bf16": False}),
    )
    draft.leave("rows come in the order of the file", "disable_shuffling")
    shared.of_tool(draft, lr_scheduler_type="linear", warmup_steps=0)
    shared.two_at_a_time(draft)


def _low_rank(draft: Draft, name: str) -> None:
    """GaLore and APOLLO are optimizers of transformers."""
    keys = [key for key in draft.given if key == f"use_{name}" or key.startswith(f"{name}_")]
    if not draft.get(f"use_{name}"):
        draft.leave(f"`use_{name}` is off", *keys)
        return
    layerwise = "_layerwise" if draft.get(f"{name}_layerwise") else ""
    settings = {"rank": f"{name}_rank", "update_proj_gap": f"{name}_update_interval", "scale": f"{name}_scale"}
    settings |= {"proj": "apollo_proj", "scale_type": "apollo_scale_type"} if name == "apollo" else {}
    usual: dict[str, Any] = {"galore_rank": 16, "galore_update_interval": 200, "galore_scale": 2.0}
    usual |= {"apollo_rank": 16, "apollo_update_interval": 200, "apollo_scale": 32.0}
    usual |= {"apollo_proj": "random", "apollo_scale_type": "channel"}
    told = [f"{ours}={draft.get(key, usual[key])}" for ours, key in settings.items()]
    draft.put("training.optim", f"{name}_adamw{layerwise}", f"use_{name}", f"{name}_layerwise")
    target = draft.get(f"{name}_target", "all")
    targets = "all-linear" if target == "all" else shared.modules(target)
    draft.put("training.optim_target_modules", targets, f"{name}_target")
    if told:
        draft.put("training.optim_args", ", ".join(told), *settings.values())


def _processes(draft: Draft, processes: int | None, file: Path) -> None:
    if draft.get("deepspeed"):
        shared.deepspeed(draft, processes, file)
    elif draft.get("fsdp"):
        shared.launch(draft, processes, "fsdp", None, "fsdp")
    elif processes is not None:
        draft.put("launch.processes", processes)
    draft.leave("FSDP2 finds the layers that it wraps", "fsdp_transformer_layer_cls_to_wrap", "fsdp_config")
    megatron = "tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size sequence_parallel"
    draft.lose("models are not split inside a layer", *megatron.split(), "context_parallel_size")
