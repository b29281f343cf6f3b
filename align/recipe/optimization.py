"""What optimizers and learning-rate schedules of transformers take besides their names, and what they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from align.errors import nearest, shown
from align.recipe.argument_values import Fault
from align.recipe.verdicts import LOW_RANK

_BITS: Final = ("use_kahan_summation", "momentum_dtype", "variance_dtype", "compensation_buffer_dtype")
_LOW_RANK: Final = ("rank", "update_proj_gap", "scale", "proj_type")
_ADEMAMIX: Final = ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
# By how the name of an optimizer begins, what it reads of `optim_args`; others read nothing. A weight decay there
# would give way to the argument `weight_decay`.
OPTIM_ARGS: Final[dict[str, tuple[str, ...]]] = {
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
    "rmsprop_bnb": (),  # transformers hands it texts where it wants numbers
    "ademamix": _ADEMAMIX,
    "paged_ademamix": _ADEMAMIX,
    "galore_": _LOW_RANK,
    "apollo_": (*_LOW_RANK, "proj", "scale_type"),
    "grokadamw": ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"),
    "adamw_torch_4bit": ("bf16_stochastic_round",),
    "adamw_torch_8bit": ("bf16_stochastic_round",),
    "schedule_free_": ("weight_lr_power", "r"),
    "stable_adamw": ("max_lr", "kahan_sum", "decouple_lr"),
    "adamw_anyprecision": _BITS,
}
_MIN_LR: Final = ("num_cycles", "min_lr", "min_lr_rate")
SCHEDULES: Final[dict[str, tuple[str, ...]]] = {
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": _MIN_LR,
    "cosine_warmup_with_min_lr": (*_MIN_LR, "warmup_lr_rate"),
    "warmup_stable_decay": (
        *("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"),
    ),
}
"""What a schedule takes in `lr_scheduler_kwargs`."""
# What it must be told there: one of these.
_WANTED: Final = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
DEFAULT: Final = "adamw_torch_fused"  # of transformers, which computes it


def faults(training: Mapping[str, Any]) -> Iterator[Fault]:
    """What of `training:` does not go with its optimizer or its schedule."""
    yield from _of_schedule(training)
    yield from _of_optimizer(training)


def _of_schedule(training: Mapping[str, Any]) -> Iterator[Fault]:
    name, told = training.get("lr_scheduler_type", "linear"), training.get("lr_scheduler_kwargs") or {}
    if not isinstance(name, str) or not isinstance(told, dict):
        return
    wanted = _WANTED.get(name, ())
    if wanted and not set(wanted) & set(told):
        what = f"the schedule '{name}' needs '{wanted[0]}'"
        yield Fault("lr_scheduler_type", what, f"write `lr_scheduler_kwargs: {{{wanted[0]}: ...}}` next to it")
    if set(told) >= {"min_lr", "min_lr_rate"}:
        yield Fault(
            "lr_scheduler_kwargs", "'{key}' has both 'min_lr' and 'min_lr_rate', which mean the same", "keep one"
        )
    known = SCHEDULES.get(name)
    unknown = next((key for key in told if known and key not in known), None)
    if known and unknown is not None:
        what = f"the schedule '{name}' takes no '{unknown}'"
        yield Fault("lr_scheduler_kwargs", what, _known(unknown, known))


def _of_optimizer(training: Mapping[str, Any]) -> Iterator[Fault]:
    name, text = training.get("optim", DEFAULT), training.get("optim_args")
    if not isinstance(name, str):
        return
    start = max((start for start in OPTIM_ARGS if name.startswith(start)), key=len, default="")
    known = OPTIM_ARGS.get(start, ())
    given = [pair.partition("=")[0].strip() for pair in text.split(",")] if isinstance(text, str) and text else []
    unknown = next((key for key in given if key not in known), None)
    if given and not known:
        yield Fault("optim_args", f"the optimizer '{name}' takes no `optim_args`", "leave them out")
    elif unknown is not None:
        yield Fault("optim_args", f"the optimizer '{name}' takes no '{unknown}'", _known(unknown, known))
    if name in LOW_RANK and not training.get("optim_target_modules"):
        what = f"the optimizer '{name}' needs `optim_target_modules`"
        yield Fault("optim", what, "write `optim_target_modules: all-linear` next to it")
    accumulated = training.get("gradient_accumulation_steps", 1)
    if name.endswith("layerwise") and accumulated != 1:
        what = (
            f"the optimizer '{name}' updates each layer immediately and cannot accumulate {shown(accumulated)} batches"
        )
        yield Fault("optim", what, "write `gradient_accumulation_steps: 1`")


def _known(word: str, known: tuple[str, ...]) -> str:
    close = nearest(word, known)
    return f"did you mean '{close}'?" if close else f"known there: {', '.join(known)}"
