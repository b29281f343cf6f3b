"""The state of an optimizer that FSDP2 shares out, put together as torch's own has it, and shared out again."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

State = dict[str, Any]


def gathered(optimizer: torch.optim.Optimizer, *, keep: bool) -> State | None:
    """The state as an optimizer of whole weights has it. A collective call.

    Args:
        keep: whether this process wants it; the others only take part, and get None.
    """
    shared = optimizer.state_dict()
    found: State = {"state": {}, "param_groups": shared["param_groups"]}
    for number, own in shared["state"].items():
        parts = {key: _whole(value) for key, value in own.items()}  # one weight's at a time
        found["state"][number] = {key: _in_memory(value) for key, value in parts.items()} if keep else {}
    return found if keep else None


def scatter(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Give an optimizer this process's part of a state that every process has read.

    Raises:
        ValueError: it is of other weights.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    sizes = [len(group["params"]) for group in state["param_groups"]]
    if sizes != [len(group["params"]) for group in optimizer.param_groups]:
        raise ValueError("the checkpoint's optimizer has other weights than the model trains")
    parted = {}
    for number, own in state["state"].items():
        weight = weights[number]
        parted[number] = {key: _part(value, weight) for key, value in own.items()}
    optimizer.load_state_dict({**state, "state": parted})


def _part(value: Any, weight: torch.Tensor) -> Any:
    """This process's part of a tensor with a number for each weight; what else there is, as it is."""
    if not (isinstance(value, torch.Tensor) and isinstance(weight, DTensor) and value.shape == weight.shape):
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _in_memory(value: Any) -> Any:
    return value.cpu().clone() if isinstance(value, torch.Tensor) else value
