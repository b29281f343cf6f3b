"""Names that other tools have for what a recipe calls otherwise: LLaMA-Factory, Axolotl, ms-swift, torchtune, TRL's own
command lines. A recipe that uses one is told the name here, wherever it is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

# Our name, and theirs. `training.` and what has no such head stand in a stage.
_SAME: Final[dict[str, str]] = {
    "training.learning_rate": "lr learning-rate lr_rate peak_lr",
    "training.per_device_train_batch_size": """
        batch_size batch train_batch_size micro_batch_size micro_batch device_batch_size per_device_batch_size
        per_gpu_train_batch_size train_micro_batch_size_per_gpu mini_batch_size""",
    "training.per_device_eval_batch_size": "eval_batch_size per_gpu_eval_batch_size validation_batch_size",
    "training.gradient_accumulation_steps": """
        gradient_accumulation grad_accum grad_accumulation accumulation_steps grad_accumulation_steps
        gradient_accumulation_step accumulate_grad_batches""",
    "training.num_train_epochs": "epochs epoch num_epochs n_epochs num_epoch train_epochs max_epochs nb_epochs",
    "training.max_steps": "steps num_steps train_steps max_train_steps total_steps max_iters iters num_training_steps",
    "training.max_length": """
        cutoff_len max_seq_length max_seq_len max_sequence_length sequence_len sequence_length seq_len seq_length
        model_max_length max_len max_tokens block_size context_length""",
    "training.warmup_steps": "warmup warmup_ratio num_warmup_steps lr_warmup_steps warm_up_steps warmup_fraction",
    "training.lr_scheduler_type": "lr_scheduler scheduler lr_schedule schedule lr_decay_style",
    "training.optim": "optimizer optimizer_type optimiser",
    "training.max_grad_norm": "gradient_clipping grad_clip clip_grad grad_norm max_norm gradient_clip_val",
    "training.weight_decay": "wd",
    "training.adam_beta1": "beta1",
    "training.adam_beta2": "beta2",
    "training.packing": "sample_packing pack_sequences pack neat_packing",
    "training.neftune_noise_alpha": "neftune neftune_alpha",
    "training.gradient_checkpointing": "grad_checkpointing use_gradient_checkpointing enable_activation_checkpointing",
    "training.logging_steps": "log_steps log_every log_every_n_steps log_interval",
    "training.save_steps": "save_every save_interval checkpoint_every save_every_n_steps checkpoint_interval",
    "training.save_total_limit": "keep_checkpoints max_checkpoints",
    "training.eval_steps": "eval_every eval_interval evals_per_epoch val_check_interval",
    "training.eval_strategy": "evaluation_strategy",
    "training.bf16": "use_bf16 bfloat16",
    "training.fp16": "use_fp16 half",
    "training.max_completion_length": "max_new_tokens response_length max_response_length completion_length",
    "training.num_generations": "num_samples_per_prompt n_samples group_size num_return_sequences rollout_n",
    "training.num_iterations": "ppo_epochs num_ppo_epochs ppo_epoch update_epochs",
    "training.epsilon": "cliprange clip_range clip_eps clip_ratio",
    "data": """
        dataset datasets dataset_name dataset_path data_path data_file data_files train_file train_data train_dataset
        training_data train_path train""",
    "data.subset": "dataset_config dataset_subset",
    "data.split": "dataset_train_split dataset_split train_split",
    "data.columns": "column_mapping field_mapping",
    "data.limit": "max_samples max_train_samples num_samples",
    "eval_data": """
        val_size val_set_size test_size validation_split eval_split eval_size eval_dataset eval_file validation_data
        validation_file val_data val_file val_dataset test_datasets validation_dataset""",
    "completion_only_loss": "train_on_inputs train_on_prompt mask_prompt mask_inputs train_on_completions_only",
    "beta": "pref_beta dpo_beta rl_beta",
    "loss_type": "pref_loss dpo_loss rl_loss loss",
    "label_smoothing": "dpo_label_smoothing",
    "kl.coef": "kl_coef init_kl_coef kl_coefficient kl_penalty",
    "reward": "reward_model reward_model_path reward_funcs reward_function",
    "model.base": """
        base_model model_name model_name_or_path model_id model_path model_id_or_path pretrained_model_name_or_path
        checkpoint base_model_name_or_path""",
    "model.revision": "model_revision",
    "model.dtype": "torch_dtype precision model_dtype",
    "model.attn_implementation": "flash_attn flash_attention attention attn use_flash_attention_2 attn_impl",
    "model.chat_template": "template chat_template_path prompt_template conversation_template",
    "parameterization.method": """
        finetuning_type adapter peft peft_type peft_method train_type tuner tuner_type use_peft use_lora use_qlora
        load_in_4bit load_in_8bit quantization_bit""",
    "parameterization.lora.r": "lora_r lora_rank rank",
    "parameterization.lora.alpha": "lora_alpha",
    "parameterization.lora.dropout": "lora_dropout",
    "parameterization.lora.target_modules": "lora_target lora_target_modules lora_target_linear",
    "parameterization.lora.modules_to_save": "lora_modules_to_save additional_target",
    "parameterization.lora.use_dora": "dora peft_use_dora lora_use_dora",
    "parameterization.lora.use_rslora": "rslora lora_use_rslora",
    "launch.processes": "num_gpus n_gpus num_processes nproc_per_node gpus devices nproc num_gpu",
    "trackers": "tracker loggers use_wandb wandb with_tracking",
    "name": "run_name experiment_name exp_name project_name",
    "seed": "random_seed",
}
_OURS: Final[Mapping[str, str]] = {theirs: ours for ours, names in _SAME.items() for theirs in names.split()}
_OR: Final = {"kl.coef": "beta"}  # where a stage has no `kl`
_TOP: Final = ("model", "parameterization", "launch", "trackers", "name", "seed")  # heads of the recipe itself
_HOW: Final = {
    **dict.fromkeys(("train_on_inputs", "train_on_prompt"), ", with the opposite value"),
    **dict.fromkeys(("warmup_ratio", "warmup_fraction"), ", where a number below 1 is a share of all steps"),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_bit", "use_qlora"), ", with the value `qlora`"),
    **dict.fromkeys(("use_lora", "use_peft"), ", with the value `lora`"),
}


def ours(name: str) -> str | None:
    """The place in a recipe of what another tool calls by this name: `training.learning_rate` for `lr`."""
    return _OURS.get(name.lower())


def is_known(name: str, keys: Collection[str]) -> bool:
    """Whether another tool's name has a place in a recipe with a stage of these keys, as `data` and
    `training.learning_rate`."""
    return _place(name, keys) is not None


def _place(name: str, keys: Collection[str]) -> str | None:
    """The place that a recipe has for it with a stage of these keys."""
    place = _OURS.get(name.lower(), "")
    places = [one for one in (place, _OR.get(place, "")) if one]
    heads = {*keys, *_TOP}
    return next((one for one in places if one in keys or one.split(".")[0] in heads), None)


def remedy(name: str, at: Sequence[str | int], stage: str = "", keys: Collection[str] | None = None) -> str:
    """Where it is written here; empty where no other tool has such a name.

    Args:
        at: the mapping in which the name stands, as keys from the top of the recipe.
        stage: the stage that is meant where the name stands at the top.
        keys: of the stage, where they are known: it is then empty too where the stage has no place for it.
    """
    place = ours(name) if keys is None else _place(name, keys)
    if place is None:
        return ""
    whole = _whole(place, at, stage)
    head, own = whole.rpartition(".")[::2]
    here = ".".join(str(part) for part in at if not isinstance(part, int))
    said = f"write `{own}`" if head == here else f"write it as `{whole}`"
    return said + _HOW.get(name.lower(), "")


def _whole(place: str, at: Sequence[str | int], stage: str) -> str:
    """A place from the top of the recipe."""
    of_a_stage = at[:1] == ("stages",) and len(at) > 1
    if place.split(".")[0] in _TOP and not (of_a_stage and "parameterization" in at):
        return place
    named = str(at[1]) if of_a_stage else stage or "STAGE"
    return f"stages.{named}.{place}"
