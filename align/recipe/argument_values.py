"""Which values a training argument may take: kind, choices, bounds, and what its text or mapping may hold.

What a trainer would tell only after the model was loaded, or never, is told here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from align.data.order import STRATEGIES
from align.errors import nearest, one_of, shown
from align.libraries import trl as trl_source
from align.libraries.fields import Argument


class Fault(NamedTuple):
    """What is wrong with one training argument, and the way out; `what` holds `{key}` for its dotted path."""

    name: str
    what: str
    remedy: str


# Where the engine takes less than the trainer: its own order of rows, no "best" checkpoint; or where TRL names the
# values in its help alone, and compares them after the model was loaded.
_NARROWED: Final[dict[str, tuple[str, ...]]] = {
    "train_sampling_strategy": STRATEGIES,
    "save_strategy": ("no", "steps", "epoch"),
    "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none"),
    "cache_implementation": ("dynamic", "offloaded", "static", "offloaded_static"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers"),
    "vllm_importance_sampling_mode": ("sequence_mask", "sequence_truncate", "token_mask", "token_truncate"),
}
_LOSSES: Final[dict[str, tuple[str, ...]]] = {
    "SFTConfig": ("nll", "dft"),
    "GRPOConfig": ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
}
_LEFT_OUT = {"lr_scheduler_type": ("reduce_lr_on_plateau", "greedy")}  # these wait for a best evaluation
# Below these a trainer divides by zero or trains nothing, which it tells late or not at all.
_AT_LEAST: Final[dict[str, float]] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    "save_total_limit": 2,  # the one before a torn one must still be there
    **dict.fromkeys(("max_length", "max_completion_length", "pad_to_multiple_of", "dataset_num_proc"), 1),
    **dict.fromkeys(("steps_per_generation", "num_iterations", "num_generations", "num_completions_to_print"), 1),
    **dict.fromkeys(("dataloader_prefetch_factor", "torch_empty_cache_steps", "ddp_bucket_cap_mb"), 1),
    **dict.fromkeys(("vllm_max_model_length", "vllm_tensor_parallel_size"), 1),
    **dict.fromkeys(("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "adam_epsilon"), 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor", "neftune_noise_alpha", "eval_delay"), 0),
    **dict.fromkeys(("dataloader_num_workers", "top_k", "top_p", "min_p", "router_aux_loss_coef"), 0),
    **dict.fromkeys(("top_entropy_quantile", "entropy_coef", "entropy_coef_min", "entropy_coef_max"), 0),
    **dict.fromkeys(("entropy_coef_delta", "entropy_target", "off_policy_mask_threshold"), 0),
    **dict.fromkeys(("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"), 0),
}
_ABOVE_0: Final = (
    *("num_train_epochs", "logging_steps", "save_steps", "eval_steps", "discopop_tau"),
    *("temperature", "epsilon", "epsilon_high", "delta", "repetition_penalty"),
    *("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg"),
    *("vespo_lambda_neg", "vllm_gpu_memory_utilization", "vllm_server_timeout"),
)
_BELOW_1: Final = ("adam_beta1", "adam_beta2", "label_smoothing_factor")
_AT_MOST_1: Final = ("top_p", "min_p", "top_entropy_quantile", "vllm_gpu_memory_utilization")
_SHARES: Final = ("warmup_steps", "logging_steps", "save_steps", "eval_steps")  # below 1 of all steps, else whole
_CHECKPOINTING: Final = (
    *("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop", "every_n_layers", "offload"),
)
_KEYS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"), _CHECKPOINTING),
}
"""What a mapping may hold."""
_SAMPLING: Final = {  # of `generation_kwargs`, each with the argument that it would overrule
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")},
    **dict.fromkeys(("max_new_tokens", "max_length"), "max_completion_length"),
    "num_return_sequences": "num_generations",
}
_SET: Final = ("disable_compile", "return_dict_in_generate", "num_beams", "num_beam_groups")  # by TRL, or left alone
_FEW, _LISTED = 4, 15  # values that a remedy lists always, and at most


def choices(argument: Argument, config: str = "") -> tuple[str, ...]:
    """The values that an argument may take; empty where any of its kind may stand."""
    if argument.name == "loss_type" and config in _LOSSES:
        return _LOSSES[config]
    left_out = _LEFT_OUT.get(argument.name, ())
    return _NARROWED.get(argument.name, tuple(value for value in argument.choices if value not in left_out))


def fault(argument: Argument, value: Any, config: str = "") -> Fault | None:
    """What is wrong with a value, if something is."""
    name = argument.name
    help_ = f"{name}: {_first_sentence(argument.help)}" if argument.help else ""
    allowed = choices(argument, config)
    if allowed and value not in allowed and not (value is None and "None" in argument.kinds):
        return Fault(name, f"'{{key}}' cannot be {shown(value)}", _nearest_of(str(value), allowed))
    if not argument.fits(value):
        return Fault(name, f"'{{key}}' must be {one_of(argument.words)}, not {shown(value)}", help_)
    said = _number(name, value, argument.default) if _is_number(value) else None
    if said:
        return Fault(name, said, "leave it out to train `num_train_epochs`" if name == "max_steps" else help_)
    checked = _FORMS.get(name)
    return checked(name, value) if checked else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(name: str, value: Any, default: Any) -> str | None:
    """What is wrong with a number."""
    if not math.isfinite(value):
        return f"'{{key}}' must be a finite number, not {value}"
    if name in _AT_LEAST and value < _AT_LEAST[name]:
        return f"'{{key}}' must be at least {_AT_LEAST[name]}, not {value}"
    if name in _ABOVE_0 and value <= 0:
        return f"'{{key}}' must be above 0, not {value}"
    if name in _BELOW_1 and value >= 1:
        return f"'{{key}}' must be below 1, not {value}"
    if name in _AT_MOST_1 and value > 1:
        return f"'{{key}}' must be at most 1, not {value}"
    if name in _SHARES and value > 1 and value != int(value):
        return f"'{{key}}' must be a share of all steps below 1, or a whole number, not {value}"
    if name == "max_steps" and value < 1 and value != default:
        return f"'{{key}}' must be at least 1, not {value}"
    return None


# ---- texts, lists and mappings that have a form of their own --------------------------------------------------------


def _range(name: str, value: Any) -> Fault | None:
    numbers = [one for one in value if type(one) in (int, float)] if isinstance(value, list) else []
    if value is None or (len(numbers) == 2 == len(value) and numbers[0] < numbers[1]):
        return None
    return Fault(name, "'{key}' must be two numbers, the lower first", f"for example, write `{name}: [-5, 5]`")


def _multiple(name: str, value: Any) -> Fault | None:
    if not isinstance(value, str) or value == "auto":
        return None
    return Fault(
        name, f"'{{key}}' must be a whole number, null or auto, not {value!r}", f"write for example `{name}: 8`"
    )


def _pairs(name: str, value: Any) -> Fault | None:
    """`a=1,b=2`, as transformers takes it apart."""
    parts = [] if value is None else value.replace(" ", "").split(",")
    if all(part.count("=") == 1 and all(part.split("=")) for part in parts):
        return None
    example = "momentum=0.9,nesterov=true"
    return Fault(
        name, f"'{{key}}' must be pairs of NAME=VALUE, not {value!r}", f"write for example `{name}: {example}`"
    )


def _debug(name: str, value: Any) -> Fault | None:
    words = value if isinstance(value, list) else str(value or "").split()
    wrong = [word for word in words if word != "underflow_overflow"]
    return (
        Fault(name, f"'{{key}}' cannot be {shown(wrong[0])}", f"write `{name}: underflow_overflow`") if wrong else None
    )


def _tokens_seen(name: str, value: Any) -> Fault | None:
    allowed = ("all", "non_padding", "no")
    known = isinstance(value, bool) or value in allowed
    return None if known else Fault(name, f"'{{key}}' cannot be {shown(value)}", _nearest_of(str(value), allowed))


def _mapping(name: str, value: Any) -> Fault | None:
    """A mapping that may hold certain keys only."""
    unknown = next((key for key in value or {} if key not in _KEYS[name]), None)
    if unknown is None:
        return None
    close = nearest(unknown, _KEYS[name])
    remedy = f"did you mean '{close}'?" if close else f"known there: {', '.join(_KEYS[name])}"
    return Fault(name, f"unknown key '{{key}}.{unknown}'", remedy)


def _sampling(name: str, value: Any) -> Fault | None:
    """What has an argument of its own would go before it, unseen by the checks of lengths."""
    twice = next((key for key in _SAMPLING if key in (value or {})), None)
    if twice is not None:
        remedy = f"write `{_SAMPLING[twice]}` next to `{name}`"
        return Fault(name, f"'{{key}}.{twice}' has its own argument", remedy)
    known = trl_source.of_generation() - set(_SET)
    unknown = next((key for key in value or {} if key not in known), None)
    if unknown is None:
        return None
    close = nearest(unknown, known)
    remedy = f"did you mean '{close}'?" if close else "see the arguments of transformers.GenerationConfig"
    return Fault(name, f"unknown key '{{key}}.{unknown}'", remedy)


def _liger(name: str, value: Any) -> Fault | None:
    if not (value or {}).get("fused_linear_cross_entropy"):
        return None
    what = "'{key}.fused_linear_cross_entropy' would replace TRL's own version, which does the same"
    return Fault(name, what, "leave it out")


_FORMS: Final[Mapping[str, Callable[[str, Any], Fault | None]]] = {
    "reward_clip_range": _range,
    "pad_to_multiple_of": _multiple,
    "optim_args": _pairs,
    "debug": _debug,
    "include_num_input_tokens_seen": _tokens_seen,
    "generation_kwargs": _sampling,
    "liger_kernel_config": _liger,
    **dict.fromkeys(_KEYS, _mapping),
}


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
