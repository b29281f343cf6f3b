"""What is said to act reaches the trainer and changes what it trains; what is said to do nothing changes nothing."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers.trainer_utils import IntervalStrategy

import arguments_page
from align.errors import AlignError
from align.lab import data
from align.recipe import training_arguments
from align.run_folder.paths import RunDir
from align.stage import program as programs
from align.stage.job import Job
from align.worker import execute
from models import BASE, Stages, preferences, settings, tensors
from test_ppo import function

# A value of each argument that acts, other than its default.
VALUES: dict[str, Any] = {
    "num_train_epochs": 2,
    "max_steps": 7,
    "per_device_train_batch_size": 6,
    "gradient_accumulation_steps": 3,
    "train_sampling_strategy": "group_by_length",
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "warmup_steps": 0.2,
    "optim": "adafactor",
    "optim_args": "momentum=0.9",
    "optim_target_modules": "all-linear",
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.5,
    "max_length": 77,
    "truncation_mode": "keep_end",
    "packing": True,
    "packing_strategy": "wrapped",
    "eval_packing": False,
    "padding_free": True,
    "pad_to_multiple_of": 8,
    "dataset_num_proc": 2,
    "label_smoothing_factor": 0.1,
    "average_tokens_across_devices": False,
    "neftune_noise_alpha": 5.0,
    "disable_dropout": False,
    "f_divergence_type": "js_divergence",
    "f_alpha_divergence_coef": 0.3,
    "use_weighting": True,
    "discopop_tau": 0.1,
    "router_aux_loss_coef": 0.01,
    "bf16": True,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"every_n_layers": 2},
    "activation_offloading": True,
    "torch_empty_cache_steps": 4,
    "torch_compile_backend": "eager",
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "logging_strategy": "epoch",
    "logging_steps": 3,
    "logging_first_step": True,
    "logging_nan_inf_filter": False,
    "include_num_input_tokens_seen": "all",
    "save_strategy": "epoch",
    "save_steps": 3,
    "save_total_limit": 4,
    "eval_strategy": "epoch",
    "eval_steps": 3,
    "eval_delay": 2,
    "eval_on_start": False,
    "per_device_eval_batch_size": 3,
    "dataloader_num_workers": 1,
    "dataloader_persistent_workers": True,
    "dataloader_multiprocessing_context": "spawn",
    "dataloader_in_order": False,
    "ddp_find_unused_parameters": True,
    "ddp_bucket_cap_mb": 10,
    "ddp_broadcast_buffers": False,
    "ddp_static_graph": True,
    "num_generations": 4,
    "steps_per_generation": 8,
    "num_iterations": 3,
    "max_completion_length": 9,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "generation_kwargs": {"no_repeat_ngram_size": 3},
    "chat_template_kwargs": {"enable_thinking": False},
    "cache_implementation": "static",
    "epsilon": 0.1,
    "epsilon_high": 0.3,
    "delta": 1.5,
    "reward_clip_range": [-5, 5],
    "normalize_advantages": True,
    "mask_truncated_completions": True,
    "scale_rewards": "batch",
    "multi_objective_aggregation": "normalize_then_sum",
    "importance_sampling_level": "sequence",
    "off_policy_mask_threshold": 0.5,
    "use_bias_correction_kl": False,
    "top_entropy_quantile": 0.5,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "entropy_coef_min": 0.01,
    "entropy_coef_max": 0.5,
    "entropy_coef_delta": 0.01,
    "entropy_target": 0.3,
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), 2.0),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), 2.5),
    "log_completions": True,
    "num_completions_to_print": 2,
    "log_unique_prompts": True,
    "distillation_mode": "full_logits",
    "distillation_alpha": 0.25,
    "distillation_topk": 20,
    "distillation_add_tail": True,
    "distillation_is_clip": 1.5,
    "num_loss_tokens_to_skip": 1,
    "generate_from_teacher": True,
    "teacher_prompt_template": "{privileged_context} {prompt}",
    "teacher_update_rate": 0.1,
    "teacher_sync_steps": 2,
    "use_vllm": True,
    "vllm_mode": "server",
    "vllm_model_impl": "transformers",
    "vllm_structured_outputs_regex": "[0-9]+",
    "vllm_server_base_url": "http://localhost:1",
    "vllm_server_host": "localhost",
    "vllm_server_port": 1,
    "vllm_server_timeout": 1.0,
    "vllm_group_port": 2,
    "vllm_gpu_memory_utilization": 0.5,
    "vllm_max_model_length": 100,
    "vllm_tensor_parallel_size": 2,
    "vllm_enable_sleep_mode": True,
    "vllm_importance_sampling_correction": False,
    "vllm_importance_sampling_mode": "token_mask",
    "vllm_importance_sampling_clip_max": 2.0,
    "vllm_importance_sampling_clip_min": 0.5,
}
BESIDE = {  # what transformers itself wants beside a value
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "activation_checkpointing_kwargs": {"activation_checkpointing": True},
    "gradient_checkpointing_kwargs": {"gradient_checkpointing": True},
}
ELSEWHERE = {  # looked at otherwise, or nowhere
    "loss_type",
    "torch_compile",
    "torch_compile_mode",  # they begin to compile
    "tf32",
    "fp16",  # of a GPU
    "debug",
    "dataloader_prefetch_factor",
}
ACTING = [
    (name, argument)
    for argument, found in arguments_page.table().items()
    for name, verdict in found.items()
    if verdict.kind == "acts"
]


def test_there_is_a_value_for_each() -> None:
    assert {argument for _, argument in ACTING} - ELSEWHERE == set(VALUES)


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(RunDir(tmp_path))


def given(stages: Stages, name: str, training: dict[str, Any]) -> Any:
    """The config that a stage makes of its `training`."""
    program = programs.load(name, Path())
    ticket = stages.ticket(name, "sft", BASE, settings("lora"))
    ticket.training = {"bf16": False, **training}
    keys = program.stage.keys.model_construct()
    empty: dict[str, Any] = {"model": None, "tokenizer": None, "rows": [], "groups": [], "evaluation": []}
    job = Job(ticket, keys, stages.run, stages.run.stage(name), interrupted=lambda: False, **empty)
    assert program.stage.arguments is not None
    configs = importlib.import_module("trl.experimental.sdft") if program.stage.demonstrated else trl
    return job.arguments(getattr(configs, program.stage.arguments))


def test_one_process_trains_on_one_gpu(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers puts DataParallel over all that it sees, and the batch is as many times larger."""
    monkeypatch.setattr(trl.SFTConfig, "__post_init__", lambda self: setattr(self, "_n_gpu", 4))
    args = given(stages, "sft", {"per_device_train_batch_size": 8})
    assert (args.n_gpu, args.train_batch_size) == (1, 8)


@pytest.mark.parametrize("name", arguments_page.stages())
def test_what_acts_reaches_the_trainer(name: str, stages: Stages) -> None:
    config = arguments_page.stages()[name].arguments
    assert config is not None
    for argument in (argument for stage_, argument in ACTING if stage_ == name and argument in VALUES):
        value = VALUES[argument]
        assert training_arguments.choices(training_arguments.known(config)[argument], config) == () or value is not None
        assert [f for f in training_arguments.check(config, {argument: value}, frozenset()) if f.name == argument] in (
            [],
            [
                training_arguments.Fault(
                    "optim_args", "the optimizer 'adamw_torch_fused' takes no `optim_args`", "leave them out"
                )
            ],
        )
        fitting = {"num_generations": 4, "steps_per_generation": 4} if name in ("ppo", "rloo", "grpo", "sdft") else {}
        found = getattr(given(stages, name, {**fitting, **BESIDE.get(argument, {}), argument: value}), argument)
        assert (found.value if isinstance(found, IntervalStrategy) else found) == value, argument


# ---- what it changes -------------------------------------------------------------------------------------------------

SGD = {"optim": "sgd", "learning_rate": 0.5}
PACKED = {"packing": True, "max_length": 64}
SHORT = {"max_length": 24}
ALPHA = {"f_divergence_type": "alpha_divergence"}
# The stage, what both have, what one has besides.
CHANGES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("sft", {}, {"lr_scheduler_type": "constant"}),
    ("sft", {"lr_scheduler_type": "cosine"}, {"lr_scheduler_kwargs": {"num_cycles": 2}}),
    ("sft", {}, {"warmup_steps": 2}),
    ("sft", {}, {"weight_decay": 0.5}),
    ("sft", {}, {"adam_beta1": 0.5}),
    ("sft", {}, {"adam_beta2": 0.5}),
    ("sft", {}, {"adam_epsilon": 0.1}),
    ("sft", {}, {"optim": "sgd"}),
    ("sft", SGD, {"optim_args": "momentum=0.9"}),
    ("sft", {}, {"max_grad_norm": 1e-3}),
    ("sft", {}, {"label_smoothing_factor": 0.3}),
    ("sft", {}, {"neftune_noise_alpha": 5.0}),
    ("sft", {}, {"loss_type": "dft"}),
    ("sft", {}, SHORT),
    ("sft", SHORT, {"truncation_mode": "keep_end"}),
    ("sft", SHORT, {"packing": True}),
    ("sft", PACKED, {"packing_strategy": "wrapped"}),
    ("sft", {}, {"gradient_accumulation_steps": 2}),
    ("sft", {}, {"train_sampling_strategy": "random"}),
    ("sft", {}, {"bf16": True}),
    ("dpo", {}, {"f_divergence_type": "js_divergence"}),
    ("dpo", ALPHA, {"f_alpha_divergence_coef": 0.2}),
    ("dpo", {}, {"use_weighting": True}),
    ("dpo", {}, {"disable_dropout": False}),
    ("dpo", {}, SHORT),
    ("dpo", SHORT, {"truncation_mode": "keep_end"}),
    ("dpo", {}, {"neftune_noise_alpha": 5.0}),
    ("kto", {}, {"disable_dropout": False}),
    ("reward", {}, {"disable_dropout": False}),
]
# Refused, because they change nothing.
NOTHING: list[tuple[str, dict[str, Any]]] = [
    ("sft", {"use_cache": True}),
    ("sft", {"dataloader_drop_last": True, "num_train_epochs": 2, "max_steps": -1}),
    ("dpo", {"label_smoothing_factor": 0.3}),
    ("dpo", {"padding_free": True}),
    ("dpo", {"average_tokens_across_devices": False}),
    ("dpo", {"dataset_num_proc": 1}),
    ("kto", {"label_smoothing_factor": 0.3}),
    ("reward", {"label_smoothing_factor": 0.3}),
]
QUICK = ("label_smoothing_factor", "optim_args", "padding_free", "neftune_noise_alpha")


def trained(stages: Stages, name: str, training: dict[str, Any]) -> str:
    """A hash of what three steps from the same start make of the adapter."""
    rows = preferences(12) if name in ("dpo", "kto", "reward") else data.rows("lab/helpdesk", n=18)
    method = settings("lora", lora={"r": 8, "dropout": 0.1})
    asked = {"bf16": False, "max_steps": 3, "warmup_steps": 0, "save_strategy": "no", **training}
    id = f"s{len(stages.outcomes)}"
    stages.execute(stages.ticket(id, name, BASE, method, rows=rows, dtype="float32", **asked))
    found = hashlib.sha256()
    for key, tensor in sorted(tensors(stages.jobs[id].model).items()):
        if "lora_" in key:
            found.update(tensor.float().numpy().tobytes())
    return found.hexdigest()


def marked(cases: list[Any]) -> list[Any]:
    """All but a few of them slow."""
    found = []
    for name, *sides in cases:
        marks = [] if name in ("sft", "dpo") and set(sides[-1]) & set(QUICK) else [pytest.mark.slow]
        found.append(pytest.param(name, *sides, id=f"{name}-{'-'.join(sides[-1])}", marks=marks))
    return found


@pytest.mark.parametrize(("name", "both", "one"), marked(CHANGES))
def test_what_acts_changes_what_is_trained(
    name: str, both: dict[str, Any], one: dict[str, Any], stages: Stages
) -> None:
    assert trained(stages, name, {**both, **one}) != trained(stages, name, both)


@pytest.mark.parametrize(("name", "refused"), marked(NOTHING))
def test_what_is_refused_changes_nothing(name: str, refused: dict[str, Any], stages: Stages) -> None:
    """Beside it stands what makes the difference show, where there is any."""
    length = {key: refused[key] for key in ("num_train_epochs", "max_steps") if key in refused}
    assert trained(stages, name, refused) == trained(stages, name, length)


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"fp16": True}, "fp16"),
        ({"activation_offloading": True}, "activation_offloading"),
        ({"gradient_checkpointing_kwargs": {"offload": True}}, "gradient_checkpointing_kwargs.offload"),
        ({"cache_implementation": "offloaded_static"}, "cache_implementation"),
    ],
)
def test_what_needs_a_gpu_is_told_before_the_model_is_loaded(
    training: dict[str, Any], named: str, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(execute.Builder, "build", loaded)
    with pytest.raises(AlignError) as error:
        stages.execute(stages.ticket("sft", "sft", BASE, settings("lora"), **training))
    assert (error.value.what, error.value.remedy) == (
        f"'stages.sft.training.{named}' needs a GPU, and this machine has none",
        "leave it out",
    )


@pytest.mark.slow
def test_the_rate_of_a_stage_that_samples_answers_rises_in_its_warm_up(stages: Stages) -> None:
    schedule = programs.load("rloo", Path()).stage.defaults["all"]["lr_scheduler_type"]
    rollout = {"steps_per_generation": 2, "num_generations": 2, "max_completion_length": 4, "max_steps": 4}
    reward = [function("short")]
    asked = {"rewards": reward, "learning_rate": 0.003, "warmup_steps": 3, "lr_scheduler_type": schedule, **rollout}
    stages.execute(stages.ticket("rl", "rloo", BASE, settings("lora"), dtype="float32", bf16=False, **asked))
    assert stages.logged("rl", "learning_rate") == pytest.approx([0, 0.001, 0.002, 0.003])
