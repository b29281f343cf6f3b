"""Weights of which a process holds a part only: of FSDP2 a DTensor, of ZeRO-3 one with a `ds_id`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def whole(parameter: torch.Tensor) -> Iterator[torch.Tensor]:
    """One weight, whole. All processes call it. A weight that ZeRO-3 has partitioned has the shape (0,) outside."""
    if hasattr(parameter, "full_tensor"):
        yield parameter.full_tensor()
    elif hasattr(parameter, "ds_id"):
        with importlib.import_module("deepspeed").zero.GatheredParameters([parameter]):
            yield parameter
    else:
        yield parameter


def is_shared_out(model: nn.Module) -> bool:
    """Whether a process holds parts of a model's weights, so that all must pass through it together."""
    return any(hasattr(one, "full_tensor") or hasattr(one, "ds_id") for one in model.parameters())


def reshard(model: nn.Module) -> None:
    """Have each process hold its part alone. All processes call it.

    FSDP2 leaves the last weights of a pass whole, in the pass's precision; ZeRO-3 goes on fetching weights for a
    backward pass that does not come where the model was evaluated.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    shared = next((one for one in model.parameters() if hasattr(one, "_z3_optimizer")), None)
    if shared is not None:
        shared._z3_optimizer.empty_partition_cache()


def to_save(model: Any, *, keep: bool) -> dict[str, torch.Tensor]:
    """What a model saves, whole and in main memory; of one with adapters these and what else is trained, not the base.
    All processes call it, and one tensor at a time is whole in those that do not keep them.

    Args:
        model: of transformers or PEFT.
        keep: whether this process wants it; the others get nothing.
    """
    reshard(model)
    adapters = set(getattr(model, "peft_config", {}))
    found = {}
    for name, parameter in model.named_parameters():
        if not adapters or parameter.requires_grad or adapters & set(name.split(".")):
            with whole(parameter) as tensor:
                if keep:
                    found[name] = tensor.detach().cpu().clone()
    if keep and not adapters:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        found |= {name: value for name, value in model.state_dict().items() if name not in parameters}
    return found
