"""What becomes of every training argument of TRL's configs: it acts, acts beside another, or is refused with what to
write instead. docs/training_arguments.md shows it stage by stage, and tests/test_verdicts.py fails where TRL or
transformers comes to have another argument, or loses one.

Of what a stage of its own declares (`Stage.keys`, `Stage.reserved`) nothing stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Beside = dict[str, "Values"]  # values of other arguments, or of keys of the stage, beside which an argument acts

_ONLINE = ("RLOOConfig", "GRPOConfig")
_OFFLINE = ("SFTConfig", "DPOConfig", "KTOConfig", "RewardConfig")


@dataclass(frozen=True)
class Values:
    """A set of values: those listed, or all but those."""

    listed: tuple[Any, ...]
    others: bool = False

    def __contains__(self, value: Any) -> bool:
        found = any(one in self.listed for one in value) if isinstance(value, list) and value else value in self.listed
        return found != self.others


def among(*values: Any) -> Values:
    """These values."""
    return Values(values)


def but(*values: Any) -> Values:
    """All other values."""
    return Values(values, others=True)


SET: Final = but(None, False, 0, "")
_GALORE: Final = ("adamw", "adamw_8bit", "adafactor", "adamw_layerwise", "adamw_8bit_layerwise", "adafactor_layerwise")
LOW_RANK: Final = (*(f"galore_{name}" for name in _GALORE), "apollo_adamw", "apollo_adamw_layerwise")
_NO_ADAM: Final = ("sgd", "adagrad", "rmsprop", "adafactor", "lomo", "adalomo")
_RMSPROP: Final = ("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit")
_LION: Final = ("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit")
_CLIPPED: Final = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")

# ---- they act -------------------------------------------------------------------------------------------------------

_NAMES: Final = """
    num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps train_sampling_strategy
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps
    optim optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
    max_length truncation_mode packing packing_strategy eval_packing padding_free pad_to_multiple_of dataset_num_proc
    loss_type label_smoothing_factor average_tokens_across_devices neftune_noise_alpha disable_dropout
    f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau router_aux_loss_coef
    bf16 fp16 tf32 gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing
    activation_checkpointing_kwargs activation_offloading torch_empty_cache_steps
    torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config
    logging_strategy logging_steps logging_first_step logging_nan_inf_filter include_num_input_tokens_seen debug
    save_strategy save_steps save_total_limit
    eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size
    dataloader_num_workers dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    num_generations steps_per_generation num_iterations max_completion_length
    temperature top_p top_k min_p repetition_penalty generation_kwargs chat_template_kwargs cache_implementation
    epsilon epsilon_high delta reward_clip_range normalize_advantages mask_truncated_completions
    scale_rewards multi_objective_aggregation importance_sampling_level off_policy_mask_threshold
    use_bias_correction_kl top_entropy_quantile entropy_coef use_adaptive_entropy
    entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target
    sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg
    log_completions num_completions_to_print log_unique_prompts
    distillation_mode distillation_alpha distillation_topk distillation_add_tail distillation_is_clip
    num_loss_tokens_to_skip generate_from_teacher teacher_prompt_template teacher_update_rate teacher_sync_steps
    use_vllm vllm_mode vllm_model_impl vllm_structured_outputs_regex
    vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port
    vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size vllm_enable_sleep_mode
    vllm_importance_sampling_correction vllm_importance_sampling_mode
    vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
"""
ACTS: Final = frozenset(_NAMES.split())

_EVALUATED: Final[Beside] = {"eval_data": SET, "eval_strategy": but("no")}
_WORKERS: Final[Beside] = {"dataloader_num_workers": SET}
_CHECKPOINTED: Final[Beside] = {"gradient_checkpointing": but(False), "activation_checkpointing": but(False)}
_SERVER: Final[Beside] = {"use_vllm": among(True), "vllm_mode": among("server")}
_COLOCATED: Final[Beside] = {"use_vllm": among(True), "vllm_mode": among("colocate")}
_CORRECTED: Final[Beside] = {"use_vllm": among(True), "vllm_importance_sampling_correction": among(True)}
_ADAPTIVE: Final[Beside] = {"use_adaptive_entropy": among(True)}

BESIDE: Final[dict[str, Beside]] = {
    "warmup_steps": {"lr_scheduler_type": but("constant")},
    "lr_scheduler_kwargs": {"lr_scheduler_type": but("linear", "constant", "constant_with_warmup")},
    "optim_target_modules": {"optim": among(*LOW_RANK)},
    "adam_beta1": {"optim": but(*_NO_ADAM, *_RMSPROP)},
    "adam_beta2": {"optim": but(*_NO_ADAM, *_RMSPROP)},
    "adam_epsilon": {"optim": but(*_NO_ADAM, *_RMSPROP, *_LION)},
    "packing": {"max_length": but(None)},
    "packing_strategy": {"packing": among(True)},
    "padding_free": {"packing": among(True)},
    "eval_packing": {"packing": among(True), "eval_data": SET},
    "dataset_num_proc": {"packing": among(True)},
    "label_smoothing_factor": {"loss_type": among("nll")},
    "f_alpha_divergence_coef": {"f_divergence_type": among("alpha_divergence")},
    "use_weighting": {"loss_type": but("aot", "aot_unpaired")},
    "discopop_tau": {"loss_type": among("discopop")},
    "gradient_checkpointing_kwargs": _CHECKPOINTED,
    "activation_checkpointing_kwargs": _CHECKPOINTED,
    "liger_kernel_config": {"use_liger_kernel": among(True)},
    "eval_strategy": {"eval_data": SET},
    "eval_steps": {"eval_data": SET},
    "eval_delay": _EVALUATED,
    "eval_on_start": _EVALUATED,
    "per_device_eval_batch_size": _EVALUATED,
    "dataloader_persistent_workers": _WORKERS,
    "dataloader_prefetch_factor": _WORKERS,
    "dataloader_multiprocessing_context": _WORKERS,
    "dataloader_in_order": _WORKERS,
    "cache_implementation": {"use_vllm": but(True)},
    "epsilon": {"loss_type": among(*_CLIPPED)},
    "epsilon_high": {"loss_type": among(*_CLIPPED, "cispo")},
    "delta": {"loss_type": among(*_CLIPPED)},
    "use_bias_correction_kl": {"beta": SET},
    "entropy_coef_min": _ADAPTIVE,
    "entropy_coef_max": _ADAPTIVE,
    "entropy_coef_delta": _ADAPTIVE,
    "entropy_target": _ADAPTIVE,
    "sapo_temperature_neg": {"loss_type": among("sapo")},
    "sapo_temperature_pos": {"loss_type": among("sapo")},
    "vespo_k_pos": {"loss_type": among("vespo")},
    "vespo_lambda_pos": {"loss_type": among("vespo")},
    "vespo_k_neg": {"loss_type": among("vespo")},
    "vespo_lambda_neg": {"loss_type": among("vespo")},
    "distillation_topk": {"distillation_mode": among("topk_logits")},
    "distillation_add_tail": {"distillation_mode": among("topk_logits")},
    "teacher_update_rate": {"teacher": among("ema")},
    "teacher_sync_steps": {"teacher": among("ema")},
    "num_completions_to_print": {"log_completions": among(True)},
    "log_unique_prompts": {"log_completions": among(True)},
    "vllm_mode": {"use_vllm": among(True)},
    "vllm_model_impl": _COLOCATED,
    "vllm_structured_outputs_regex": {"use_vllm": among(True)},
    "vllm_server_base_url": _SERVER,
    "vllm_server_host": _SERVER,
    "vllm_server_port": _SERVER,
    "vllm_server_timeout": _SERVER,
    "vllm_group_port": _SERVER,
    "vllm_gpu_memory_utilization": _COLOCATED,
    "vllm_max_model_length": _COLOCATED,
    "vllm_tensor_parallel_size": _COLOCATED,
    "vllm_enable_sleep_mode": _COLOCATED,
    "vllm_importance_sampling_correction": {"use_vllm": among(True)},
    "vllm_importance_sampling_mode": _CORRECTED,
    "vllm_importance_sampling_clip_max": _CORRECTED,
    "vllm_importance_sampling_clip_min": _CORRECTED,
}
"""Without these beside it an argument is refused."""

NOTED: Final[dict[str, Beside]] = {
    "num_train_epochs": {"max_steps": among(-1)},
    "logging_steps": {"logging_strategy": among("steps")},
    "save_steps": {"save_strategy": among("steps")},
    "save_total_limit": {"save_strategy": but("no")},
    "eval_steps": {"eval_strategy": among("steps")},
}
"""Without these it does nothing, which is said and stops no run: a shorter run, or one without checkpoints, is often
tried with `--set`."""

_SEVERAL = "with several processes"
ALSO: Final = {
    **dict.fromkeys(("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"), _SEVERAL),
    "ddp_static_graph": _SEVERAL,
    "average_tokens_across_devices": _SEVERAL,
    "torch_empty_cache_steps": "on a GPU",
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), "recompiles for each row length"),
    "optim_args": "for the optimizers that read them; refused with others, and if the name is unknown",
    "lr_scheduler_kwargs": "as named by the schedule",
    "router_aux_loss_coef": "for mixture-of-experts models; refused with other bases",
    "f_divergence_type": "for losses that use the difference of two answers; refused with others",
    "logging_steps": "a share of all steps, or a number",
    "warmup_steps": "a share of all steps, or a number; a note says if it is longer than the run",
}
"""What else is to be said of arguments that act, for the page."""

NEED_A_GPU: Final = ("fp16", "tf32", "activation_offloading", "use_liger_kernel", "use_vllm")

# ---- they are refused -----------------------------------------------------------------------------------------------

_LAST_POLICY = "a stage passes on its last policy; leave it out"
_REFERENCE = "the reference is the starting policy; leave it out"
_RESUMES = "run the same command again and it resumes"
_PROCESSES = "use the recipe's `launch.processes`"
_BY_HAND = "push it yourself, after reading the report"
_TRACKIO = "set TRACKIO_SPACE_ID in the environment"
_TEMPLATE = "use the recipe's `model.chat_template`"
_SAID_ELSEWHERE = "leave it out"
_ONLY_LOSS = "only the loss is computed on held-out rows; leave it out"
_ONE_MACHINE = "a run uses one machine; leave it out"
_COLUMNS = "align prepares the rows; leave it out"

ENGINE: Final = {
    "output_dir": "name the run folder with `--run-dir`",
    "seed": "use the recipe's `seed`",
    "data_seed": "use the recipe's `seed`",
    "full_determinism": "runs are reproducible anyway; leave it out",
    "resume_from_checkpoint": _RESUMES,
    "restore_callback_states_from_checkpoint": _RESUMES,
    "ignore_data_skip": _RESUMES,
    "enable_jit_checkpoint": "a run that is asked to stop saves a checkpoint anyway; leave it out",
    "save_only_model": "a checkpoint without its optimizer cannot be resumed; leave it out",
    "load_best_model_at_end": _LAST_POLICY,
    "metric_for_best_model": _LAST_POLICY,
    "greater_is_better": _LAST_POLICY,
    "hub_token": "set HF_TOKEN in the environment",
    "push_to_hub": _BY_HAND,
    "hub_model_id": _BY_HAND,
    "hub_strategy": _BY_HAND,
    "hub_private_repo": _BY_HAND,
    "hub_always_push": _BY_HAND,
    "hub_revision": _BY_HAND,
    "log_completions_hub_repo": "samples of every rollout are in `rollouts.jsonl`; leave it out",
    "trust_remote_code": "use the recipe's `model.trust_remote_code`",
    "model_init_kwargs": "use the keys under the recipe's `model`",
    "cast_lm_head_to_fp32": "use the recipe's `model.dtype`",
    "deepspeed": "use the recipe's `launch: {engine: deepspeed}`",
    "fsdp": _PROCESSES,
    "fsdp_config": _PROCESSES,
    "accelerator_config": _PROCESSES,
    "parallelism_config": _PROCESSES,
    "ddp_backend": _PROCESSES,
    "ddp_timeout": "the timeout between processes is a day; leave it out",
    "local_rank": _PROCESSES,
    "use_cpu": "a GPU is used if there is one; hide it with CUDA_VISIBLE_DEVICES=''",
    "dataloader_pin_memory": "memory is pinned if there is a GPU; leave it out",
    "report_to": "use the recipe's `trackers`",
    "run_name": "use the recipe's `name`; trackers show it with the stage",
    "project": "set WANDB_PROJECT or TRACKIO_PROJECT in the environment",
    "trackio_space_id": _TRACKIO,
    "trackio_bucket_id": _TRACKIO,
    "trackio_static_space_id": _TRACKIO,
    "eos_token": "use the recipe's `model.eos_token`",
    "pad_token": "use the recipe's `model.pad_token`",
    "chat_template_path": _TEMPLATE,
    "dataset_text_field": "use the stage's `data.columns`",
    "dataset_kwargs": "use the stage's `data`",
    "remove_unused_columns": _COLUMNS,
    "label_names": _COLUMNS,
    "length_column_name": _COLUMNS,
    "shuffle_dataset": "use `train_sampling_strategy`",
    "assistant_only_loss": "use the stage's `completion_only_loss`, which covers every answer of a conversation",
    "precompute_ref_log_probs": "the reference is always computed once, before the first step; leave it out",
    "precompute_ref_batch_size": "the reference is always computed once, before the first step; leave it out",
    "ld_alpha": "the reference is computed on complete answers; leave it out",
    "sync_ref_model": _REFERENCE,
    "ref_model_mixup_alpha": _REFERENCE,
    "ref_model_sync_steps": _REFERENCE,
    "auto_find_batch_size": "use the stage's `on_out_of_memory`, which keeps the global batch as it is",
    "skip_memory_metrics": "memory is in `metrics.jsonl` and `outcome.json`; leave it out",
    "do_train": _SAID_ELSEWHERE,
    "do_eval": "use the stage's `eval_data`",
    "do_predict": _SAID_ELSEWHERE,
    "disable_tqdm": _SAID_ELSEWHERE,
    "log_level": _SAID_ELSEWHERE,
    "log_level_replica": _SAID_ELSEWHERE,
}
"""The engine sets these itself, or has another place for them."""

RENAMED: Final = {
    "vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
}
"""A former name, which TRL is about to drop."""

_EVERYWHERE: Final = {
    "use_cache": "training uses no cache; leave it out",
    "bf16_full_eval": "evaluation uses the same precision as training: use `bf16`",
    "fp16_full_eval": "evaluation uses the same precision as training: use `fp16`",
    "prediction_loss_only": _ONLY_LOSS,
    "include_for_metrics": _ONLY_LOSS,
    "batch_eval_metrics": _ONLY_LOSS,
    "eval_do_concat_batches": _ONLY_LOSS,
    "eval_use_gather_object": _ONLY_LOSS,
    "eval_accumulation_steps": _ONLY_LOSS,
    "dataloader_drop_last": "the last batch of an epoch is filled up with rows; leave it out",
    "log_on_each_node": _ONE_MACHINE,
    "save_on_each_node": _ONE_MACHINE,
    "ds3_gather_for_generation": "it is for DeepSpeed; leave it out",
    "log_multimodal": "rows are text; leave it out",
    "max_tool_calling_iterations": "answers call no tools here; leave it out",
}
_MEAN_OF_ROWS = "the loss is a mean over rows, not over tokens; leave it out"
_NOT_SFT: Final = {
    "label_smoothing_factor": "label smoothing is for `sft` and, as the key `label_smoothing`, for `dpo`; leave it out",
    "average_tokens_across_devices": _MEAN_OF_ROWS,
    "dataset_num_proc": "align encodes the rows; leave it out",
    "padding_free": "TRL always pads here; leave it out",
}
_OF_ONLINE: Final = {
    "include_num_input_tokens_seen": "TRL counts the tokens of rollouts anyway; leave it out",
}
NOTHING: Final[dict[str, dict[str, str]]] = {
    "SFTConfig": _EVERYWHERE,
    "DPOConfig": _EVERYWHERE
    | _NOT_SFT
    | {"label_smoothing_factor": "write `label_smoothing:` next to `training:`, with `loss_type: robust`"},
    "KTOConfig": _EVERYWHERE | _NOT_SFT,
    "RewardConfig": _EVERYWHERE | _NOT_SFT,
    "RLOOConfig": _EVERYWHERE | _NOT_SFT | _OF_ONLINE,
    "GRPOConfig": _EVERYWHERE | _NOT_SFT | _OF_ONLINE,
    "SDFTConfig": _EVERYWHERE | _NOT_SFT,
}
"""They would do nothing in a stage of this config."""

_NOTHING_IS_EVALUATED = "nothing is evaluated here; leave it out"
_ROUNDS = "it rounds the trained weights to bfloat16; leave it out"
ONLINE: Final = {
    "reward_weights": "write the weights in `reward`",
    "disable_dropout": "dropout is off here: log-probabilities would differ between passes; leave it out",
    "neftune_noise_alpha": "noise would make passes differ; leave it out",
    "use_transformers_continuous_batching": _ROUNDS,
    "use_transformers_paged": _ROUNDS,
    "transformers_continuous_batching_config": _ROUNDS,
    "generation_batch_size": "use `steps_per_generation`",
    "num_generations_eval": _NOTHING_IS_EVALUATED,
    "eval_strategy": _NOTHING_IS_EVALUATED,
    "eval_steps": _NOTHING_IS_EVALUATED,
    "eval_delay": _NOTHING_IS_EVALUATED,
    "eval_on_start": _NOTHING_IS_EVALUATED,
    "per_device_eval_batch_size": _NOTHING_IS_EVALUATED,
}
"""What the shipped stages that sample answers refuse besides, by `Stage.reserved`."""

_SAMPLES_HERE = "answers are sampled by the model that is trained; leave it out"
_VLLM: Final = """
    use_vllm use_teacher_server vllm_mode vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port
    vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size
    vllm_enable_sleep_mode
"""
DISTILLED: Final = {
    "teacher_model_kind": "use the stage's `teacher`",
    "max_prompt_length": "prompts are never cut; leave it out",
    "disable_dropout": ONLINE["disable_dropout"],
    "neftune_noise_alpha": ONLINE["neftune_noise_alpha"],
    "generation_batch_size": ONLINE["generation_batch_size"],
    **{name: said for name, said in ONLINE.items() if "eval" in name},
    **dict.fromkeys(_VLLM.split(), _SAMPLES_HERE),
}
"""What `sdft` refuses."""

# ---- all of it together ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What becomes of an argument in a stage.

    Attributes:
        kind: `acts`; `key`, which stands beside `training`; `stage`, `engine`, `renamed` and `nothing` are refused.
        remedy: of what is refused, what to write instead.
    """

    kind: Literal["acts", "key", "stage", "engine", "renamed", "nothing"]
    remedy: str = ""


def of(
    config: str, name: str, keys: frozenset[str] = frozenset(), reserved: Mapping[str, str] | None = None
) -> Verdict:
    """The verdict on an argument that TRL's config has.

    Args:
        keys: the recipe keys of the stage.
        reserved: what the stage refuses itself.
    """
    if reserved and name in reserved:
        return Verdict("stage", reserved[name])
    if name in keys:
        return Verdict("key", f"write `{name}:` one level up, next to `training:`")
    if name in ENGINE:
        return Verdict("engine", ENGINE[name])
    if name in RENAMED:
        return Verdict("renamed", f"write `{RENAMED[name]}`")
    nothing = NOTHING.get(config, {})
    return Verdict("nothing", nothing[name]) if name in nothing else Verdict("acts")
