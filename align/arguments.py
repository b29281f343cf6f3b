"""`training:` of a recipe: which of the trainer's own argument names a user may set, and to what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from align.data.order import STRATEGIES
from align.declared import Argument
from align.shelf import nearest
from align.trl_source import known
from align.validation import one_of, shown

__all__ = ["OWNED", "Argument", "Fault", "check", "choices", "known", "open_to_users"]

_LAST_POLICY = "a stage hands on its last policy; leave it out"
_REFERENCE = "the reference is the policy that came in; leave it out"
_RESUMES = "run the same command again and it resumes"
_PROCESSES = "use the recipe's `launch.processes`"
_BY_HAND = "push by hand, after a look at the report"
# The engine sets these itself; each names what a user writes instead.
OWNED = {
    "output_dir": "name the run folder with `--run-dir`",
    "seed": "use the recipe's `seed`",
    "data_seed": "use the recipe's `seed`",
    "full_determinism": "a run is repeatable as it is; leave it out",
    "resume_from_checkpoint": _RESUMES,
    "restore_callback_states_from_checkpoint": _RESUMES,
    "ignore_data_skip": _RESUMES,
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
    "trust_remote_code": "use the recipe's `model.trust_remote_code`",
    "model_init_kwargs": "use the keys under the recipe's `model`",
    "deepspeed": _PROCESSES,
    "fsdp": _PROCESSES,
    "fsdp_config": _PROCESSES,
    "accelerator_config": _PROCESSES,
    "parallelism_config": _PROCESSES,
    "ddp_backend": _PROCESSES,
    "local_rank": _PROCESSES,
    "use_cpu": "a GPU is used where there is one; hide it with CUDA_VISIBLE_DEVICES=''",
    "report_to": "use the recipe's `trackers`",
    "run_name": "use the recipe's `name`; trackers show it with the stage",
    "project": "set WANDB_PROJECT or TRACKIO_PROJECT in the environment",
    "trackio_space_id": "set TRACKIO_SPACE_ID in the environment",
    "eos_token": "use the recipe's `model.chat_template`",
    "pad_token": "use the recipe's `model.chat_template`",
    "chat_template_path": "use the recipe's `model.chat_template`",
    "dataset_text_field": "use the stage's `data.columns`",
    "dataset_kwargs": "use the stage's `data`",
    "remove_unused_columns": "rows are prepared by the engine; leave it out",
    "shuffle_dataset": "use `train_sampling_strategy`",
    "assistant_only_loss": "use the stage's `completion_only_loss`, which covers every answer of a conversation",
    "precompute_ref_log_probs": "the reference is always computed once, before the first step; leave it out",
    "precompute_ref_batch_size": "the reference is always computed once, before the first step; leave it out",
    "sync_ref_model": _REFERENCE,
    "ref_model_mixup_alpha": _REFERENCE,
    "ref_model_sync_steps": _REFERENCE,
    "auto_find_batch_size": "the batch is part of what is trained; lower per_device_train_batch_size",
    "do_train": "leave it out",
    "do_eval": "use the stage's `eval_data`",
    "do_predict": "leave it out",
    "disable_tqdm": "leave it out",
    "log_level": "leave it out",
    "log_level_replica": "leave it out",
}
# Where the engine takes less than the trainer: its own order of rows, and no "best" checkpoint.
_NARROWED = {"train_sampling_strategy": STRATEGIES, "save_strategy": ("no", "steps", "epoch")}
_LEFT_OUT = {"lr_scheduler_type": ("reduce_lr_on_plateau", "greedy")}  # these wait for a best evaluation
# What a schedule must be told in `lr_scheduler_kwargs`: one of these.
_SCHEDULES = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
# Below these a trainer divides by zero or trains nothing, which it tells late or not at all.
_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "save_total_limit": 2,  # the one before a torn one must still be there
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 1,
    "learning_rate": 0,
    "warmup_steps": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "steps_per_generation": 1,
    "num_iterations": 1,
    "num_generations": 1,
    "max_completion_length": 1,
    "top_k": 0,
    "top_p": 0,
    "min_p": 0,
}
_ABOVE_0 = (
    *("num_train_epochs", "logging_steps", "save_steps", "eval_steps"),
    *("temperature", "epsilon", "epsilon_high", "delta", "repetition_penalty"),
)
_AT_MOST_1 = ("top_p", "min_p")
_SHARES = ("warmup_steps", "logging_steps", "save_steps", "eval_steps")  # below 1 of all steps, else a whole number
_FEW, _LISTED = 4, 15  # values that a remedy lists always, and at most


class Fault(NamedTuple):
    """What is wrong with one training argument, and the way out; `what` holds `{key}` for its dotted path."""

    name: str
    what: str
    remedy: str


def open_to_users(config: str, owned: Mapping[str, str] = MappingProxyType({})) -> dict[str, Argument]:
    """The arguments of a TRL config that a recipe may set; `owned` are those that a stage sets besides the engine."""
    return {name: argument for name, argument in known(config).items() if name not in OWNED and name not in owned}


def choices(argument: Argument) -> tuple[str, ...]:
    """The values that an argument may take; empty where any of its kind may stand."""
    left_out = _LEFT_OUT.get(argument.name, ())
    return _NARROWED.get(argument.name, tuple(value for value in argument.choices if value not in left_out))


def check(
    config: str,
    training: Mapping[str, Any],
    recipe_keys: frozenset[str],
    owned: Mapping[str, str] = MappingProxyType({}),
) -> list[Fault]:
    """Faults of a `training:` mapping, none when all is well.

    Args:
        recipe_keys: the stage's own recipe keys: an argument of that name belongs one level up.
        owned: arguments that the stage sets itself, each with what to write instead.
    """
    found = [
        Fault(name, f"the training argument '{name}' belongs to the stage", owned[name])
        if name in owned
        else _fault(config, name, value, recipe_keys)
        for name, value in training.items()
    ]
    found.append(_schedule_fault(training))
    return [fault for fault in found if fault is not None]


def _schedule_fault(training: Mapping[str, Any]) -> Fault | None:
    name, told = training.get("lr_scheduler_type"), training.get("lr_scheduler_kwargs") or {}
    wanted = _SCHEDULES.get(name) if isinstance(name, str) else None
    if wanted is None or (isinstance(told, dict) and set(wanted) & set(told)):
        return None
    what = f"the schedule '{name}' needs '{wanted[0]}'"
    return Fault("lr_scheduler_type", what, f"write `lr_scheduler_kwargs: {{{wanted[0]}: ...}}` beside it")


def _fault(config: str, name: str, value: Any, recipe_keys: frozenset[str]) -> Fault | None:
    if name in recipe_keys:
        remedy = f"write `{name}:` one level up, beside `training:`"
        return Fault(name, f"'{name}' is a key of the stage, not of `training`", remedy)
    arguments = known(config)
    if name in OWNED:
        return Fault(name, f"the training argument '{name}' belongs to the engine", OWNED[name])
    if name not in arguments:
        close = nearest(name, [*open_to_users(config), *recipe_keys])
        remedy = f"did you mean '{close}'?" if close else f"see the arguments of trl.{config}"
        return Fault(name, f"trl.{config} has no argument '{name}'", remedy)
    return _value_fault(arguments[name], value)


def _value_fault(argument: Argument, value: Any) -> Fault | None:
    name = argument.name
    help_ = f"{name}: {_first_sentence(argument.help)}" if argument.help else ""
    allowed = choices(argument)
    if allowed and value not in allowed and not (value is None and "None" in argument.kinds):
        return Fault(name, f"'{{key}}' cannot be {shown(value)}", _nearest_of(str(value), allowed))
    if not argument.fits(value):
        return Fault(name, f"'{{key}}' must be {one_of(argument.words)}, not {shown(value)}", help_)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not math.isfinite(value):
        return Fault(name, f"'{{key}}' must be a finite number, not {value}", help_)
    if is_number and name in _AT_LEAST and value < _AT_LEAST[name]:
        return Fault(name, f"'{{key}}' must be at least {_AT_LEAST[name]}, not {value}", help_)
    if is_number and name in _ABOVE_0 and value <= 0:
        return Fault(name, f"'{{key}}' must be above 0, not {value}", help_)
    if is_number and name in _AT_MOST_1 and value > 1:
        return Fault(name, f"'{{key}}' must be at most 1, not {value}", help_)
    if name == "reward_clip_range" and value is not None and not _is_range(value):
        return Fault(name, "'{key}' must be two numbers, the lower first", help_)
    if is_number and name in _SHARES and value > 1 and value != int(value):
        return Fault(name, f"'{{key}}' must be a share of all steps below 1, or a whole number, not {value}", help_)
    if name == "max_steps" and is_number and value < 1 and value != argument.default:
        return Fault(name, f"'{{key}}' must be at least 1, not {value}", "leave it out to train `num_train_epochs`")
    return None


def _is_range(value: Any) -> bool:
    numbers = [one for one in value if type(one) in (int, float)] if isinstance(value, list) else []
    return len(numbers) == 2 == len(value) and numbers[0] < numbers[1]


def _nearest_of(word: str, allowed: tuple[str, ...]) -> str:
    """All values where they are few; else the one that was meant: `adamw` is the beginning of `adamw_torch`."""
    if len(allowed) <= _FEW:
        return f"choose one of: {', '.join(allowed)}"
    close = next((value for value in allowed if value.startswith(word)), None) or nearest(word, allowed)
    if close:
        return f"did you mean '{close}'?"
    rest = f", or {len(allowed) - _LISTED} more that transformers knows" if len(allowed) > _LISTED else ""
    return f"choose one of: {', '.join(allowed[:_LISTED])}{rest}"


def _first_sentence(text: str) -> str:
    first = " ".join(text.split()).split(". ")[0].rstrip(".")
    return first if len(first) <= 120 else first[:117].rsplit(" ", 1)[0] + " …"
