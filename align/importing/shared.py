"""What the files of several tools say alike: adapters, precision, evaluation, many processes, who is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from align.importing.draft import Draft
from align.libraries.trl import known as fields
from align.stage import program

TEMPLATE: Final = (
    "the model's own chat template is used: see that it is this one, or name a file in `model.chat_template`"
)
ATTENTION: Final = {
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
    "disabled": "eager",
    "flash": "flash_attention_2",
}
TRACKERS: Final = ("tensorboard", "wandb", "mlflow", "trackio")

ELSEWHERE: Final = {
    "the run folder holds all of it: `--run-dir`": "output_dir overwrite_output_dir logging_dir save_only_model",
    "a run goes on by itself when it is started again": (
        "resume_from_checkpoint auto_resume_from_checkpoints save_safetensors"
    ),
    "align prepares rows itself, and keeps them": (
        "preprocessing_num_workers overwrite_cache dataset_prepared_path tokenized_path preprocessing_batch_size "
        "dataset_processes remove_unused_columns skip_prepare_dataset dataset_keep_in_memory pad_to_sequence_len "
        "data_shared_file_system shuffle_merged_datasets dataset_num_proc"
    ),
    "the report has every curve": "plot_loss",
    "a recipe always trains": "do_train",
    "the timeout between processes is a day": "ddp_timeout",
    "the model's own files say it": (
        "model_type tokenizer_type is_llama_derived_model is_falcon_derived_model is_mistral_derived_model "
        "is_qwen_derived_model use_fast_tokenizer tokenizer_use_fast low_cpu_mem_usage device_map processor_type "
        "tokenizer_legacy resize_token_embeddings_to_32x"
    ),
    "it is written on the Hub by hand": "hub_model_id push_to_hub push_dataset_to_hub hub_strategy hub_private_repo",
    "a loss that explodes is reported, and NaN stops the stage": "loss_watchdog_threshold loss_watchdog_patience",
    "typing mistakes are always refused": "strict debug",
    "it concerns chatting, not training: `align chat`": (
        "infer_backend export_dir export_size export_device export_legacy_format export_hf_on_finish sample_backend"
    ),
}
"""Keys that need no place in a recipe, by why."""

_IMAGES = "align trains on text alone"
NOT_HERE: Final = {
    _IMAGES: (
        "image_max_pixels image_min_pixels video_max_pixels video_fps video_maxlen freeze_vision_tower "
        "freeze_multi_modal_projector freeze_language_model freeze_mm_modules audio_sampling_rate media_dir"
    ),
    "8-bit floating point is not supported": "fp8 fp8_backend fp8_enable_fsdp_float8_all_gather",
    "quantization-aware training is not supported": "qat",
}
"""Keys that align has nothing for, by why; those of images are off where the rows are text."""


def sort_out(draft: Draft) -> None:
    """The keys that need no place, and those that can have none."""
    for why, keys in ELSEWHERE.items():
        draft.leave(why, *keys.split())
    for why, keys in NOT_HERE.items():
        if why == _IMAGES:
            draft.leave(f"{why}; rows with images are refused", *keys.split())
        else:
            draft.lose(why, *keys.split())


def defaults(draft: Draft, **values: Any) -> None:
    """What the tool does where its file says nothing, so that the recipe does the same."""
    for name, value in values.items():
        if not draft.has(f"training.{name}"):
            draft.argument(name, value)


def steps(draft: Draft) -> None:
    """How long: a number of steps, or of epochs."""
    limit = draft.get("max_steps", -1)
    if isinstance(limit, int) and limit > 0:
        draft.argument("max_steps", limit, "max_steps")
        draft.leave("`max_steps` decides", "num_train_epochs", "num_epochs")
    else:
        draft.leave("it is off", "max_steps")


def warmup(draft: Draft) -> None:
    """A ratio below 1 is written as a share in `warmup_steps`; a number of steps goes first, as in transformers."""
    count, ratio = draft.get("warmup_steps", 0), draft.get("warmup_ratio", 0)
    if count:
        draft.argument("warmup_steps", count, "warmup_steps")
        draft.leave("`warmup_steps` decides", "warmup_ratio")
    else:
        draft.argument("warmup_steps", float(ratio) if ratio else 0, "warmup_ratio", "warmup_steps")


def lora(draft: Draft, quantized: int | None, values: dict[str, Any], *keys: str) -> None:
    """LoRA, on a base in 4 or 8 bits where `quantized` says so; `values` by align's names, None left out."""
    draft.put("parameterization.method", "qlora" if quantized else "lora", *keys)
    for name, value in values.items():
        if value is not None:
            draft.put(f"parameterization.lora.{name}", value)
    if quantized:
        draft.put("parameterization.quantization.bits", quantized)


def modules(given: Any) -> Any:
    """The modules that get an adapter: all, a list, or names between commas."""
    if isinstance(given, str):
        if given.strip() in ("all", "all-linear"):
            return "auto"
        return [name.strip() for name in given.split(",") if name.strip()]
    return given or "auto"


def trackers(draft: Draft, given: Any, *keys: str) -> None:
    """Who is told of the metrics."""
    names = [given] if isinstance(given, str) else list(given or [])
    known = [name for name in names if name in TRACKERS]
    if known:
        draft.put("trackers", known, *keys)
        others = [str(name) for name in names if name not in TRACKERS]
        if others:
            draft.lost[f"{keys[0]}: {', '.join(others)}"] = f"trackers are {', '.join(TRACKERS)}"
    elif names in ([], ["none"], ["all"]):
        draft.leave("nobody is told by default", *keys)
    draft.lose(f"trackers are {', '.join(TRACKERS)}", *(key for key in keys if key in draft.open))


def deepspeed(draft: Draft, processes: int | None, file: Path) -> None:
    """The stage of ZeRO, and whether the optimizer is offloaded: as the configuration says, or its name."""
    given = draft.get("deepspeed")
    settings, name = given if isinstance(given, dict) else None, str(given)
    for path in (Path(name), file.parent / name):
        if settings is None and path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(settings, dict):
        zero = settings.get("zero_optimization") or {}
        stage, offload = zero.get("stage", 0), bool(zero.get("offload_optimizer"))
        parameters = bool(zero.get("offload_param"))
    else:
        told = re.search(r"(?:zero|z|stage)[_-]?(\d)", name.rpartition("/")[2].lower())
        stage, offload = int(told[1]) if told else None, "offload" in name
        parameters = offload and "all" in name
    if stage not in (2, 3):
        draft.lose(f"ZeRO is of stage 2 or 3 here, and '{name}' tells {stage}", "deepspeed")
        return
    launch(draft, processes, "deepspeed", stage, "deepspeed")
    if offload and processes is not None:
        draft.put("launch.offload_optimizer", True)
    if parameters:
        draft.lost["deepspeed: offload_param"] = "weights are not offloaded, only the optimizer"


def launch(draft: Draft, processes: int | None, engine: str, stage: int | None, *keys: str) -> None:
    """How processes share the model. Of how many there are, such files say nothing."""
    if processes is None:
        written = f"launch: {{engine: {engine}{f', zero_stage: {stage}' if stage else ''}, processes: N}}"
        draft.lose(f"say how many processes there are: `--processes N` here, or write `{written}`", *keys)
        return
    draft.put("launch.engine", engine, *keys)
    if stage:
        draft.put("launch.zero_stage", stage)
    draft.put("launch.processes", processes)


def evaluation(draft: Draft, *keys: str) -> None:
    """How often the validation loss is computed: of no use without held-out rows."""
    if not draft.has(".eval_data"):
        draft.leave("no rows are held out", *keys)


def of_tool(draft: Draft, **values: Any) -> None:
    """For everything that the stage would set otherwise than TRL: the tool's value, or TRL's own."""
    stage = program.load(draft.stage, Path()).stage
    known = fields(draft.config)
    for name in {
        **stage.defaults.get("all", {}),
        **stage.defaults.get("full", {}),
        **stage.defaults.get("adapter", {}),
    }:
        value = values.get(name, known[name].default if name in known else None)
        if name == "steps_per_generation" and value is None:
            value = draft.get("gradient_accumulation_steps", 1)
        if value is not None and not draft.has(f"training.{name}") and not draft.has(f".{name}"):
            draft.argument(name, value)
    if draft.stage == "reward" and not draft.has(".center_rewards_coefficient"):
        draft.put(".center_rewards_coefficient", draft.get("center_rewards_coefficient"), "center_rewards_coefficient")


def two_at_a_time(draft: Draft) -> None:
    """KTO estimates the KL from the other answers of a batch, of which one alone has none."""
    node = draft.recipe["stages"][draft.stage]["training"]
    if draft.stage != "kto" or node.get("per_device_train_batch_size") != 1:
        return
    accumulated = node.get("gradient_accumulation_steps", 1)
    node["per_device_train_batch_size"] = 2
    node["gradient_accumulation_steps"] = max(1, accumulated // 2)
    same = "and half as many times" if accumulated % 2 == 0 else f"so that an update has {2 * max(1, accumulated // 2)}"
    for key, place in list(draft.mapped.items()):
        if place.endswith(".per_device_train_batch_size"):
            del draft.mapped[key]
            draft.lost[key] = f"KTO needs two answers in a batch: two at a time, {same}"


def dtype(given: Any) -> Any:
    """A dtype by the name that a recipe has for it."""
    text = str(given).removeprefix("torch.")
    return {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"}.get(text, text)


def short(sources: list[dict[str, Any]]) -> Any:
    """One source alone, and a mapping of its name alone as that name."""
    written = [source["source"] if source.keys() == {"source"} else source for source in sources]
    return written[0] if len(written) == 1 else written
