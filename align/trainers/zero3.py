"""The state of an optimizer that ZeRO-3 shares out, put together as torch's own has it, and shared out again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from align.trainers.zero import alone

State = dict[str, Any]


def gathered(zero: Any, *, keep: bool) -> State | None:
    """The state of DeepSpeed's optimizer as torch's optimizer has it on its own. A collective call.

    Args:
        zero: DeepSpeed's optimizer around torch's.
        keep: whether this process wants it; the others only take part, and get None.
    """
    found: State = {"state": {}, "param_groups": [_settings(group) for group in zero.optimizer.param_groups]}
    for number, (group, parameter, flat) in enumerate(_weights(zero)):
        found["param_groups"][group]["params"].append(number)
        own = zero.optimizer.state[flat]
        parts = {
            key: zero.get_full_hp_param(parameter, key) if _is_parted(value, flat) else value
            for key, value in own.items()
        }
        found["state"][number] = {key: _alone(value) for key, value in parts.items()} if keep else {}
    return found if keep else None


def scatter(zero: Any, state: State) -> None:
    """Give DeepSpeed's optimizer this process's part of a state.

    Raises:
        ValueError: it is of other weights.
    """
    weights = list(_weights(zero))
    groups = zero.optimizer.param_groups
    sizes = [sum(group == number for group, *_ in weights) for number in range(len(groups))]
    if [len(group["params"]) for group in state["param_groups"]] != sizes:
        raise ValueError("the checkpoint's optimizer has other weights than the model trains")
    for own, saved in zip(groups, state["param_groups"], strict=True):
        own.update({key: value for key, value in saved.items() if key != "params"})
    numbers = [number for saved in state["param_groups"] for number in saved["params"]]
    for number, (group, parameter, flat) in zip(numbers, weights, strict=True):
        part = zero.optimizer.state[flat]
        for key, value in state["state"][number].items():
            if not isinstance(value, torch.Tensor) or value.dim() == 0:
                part[key] = alone(value, flat, groups[group])
                continue
            part.setdefault(key, torch.zeros_like(flat, requires_grad=False))
            _, start, size = zero.grad_position[zero.get_param_id(parameter)]
            part[key].narrow(0, start, size).copy_(_mine(value, size, zero._get_param_partition_rank(parameter)))


def _mine(value: torch.Tensor, size: int, rank: int) -> torch.Tensor:
    """A process's part of a tensor, which is filled up with zeros where it does not divide evenly: (size,)."""
    part = value.flatten()[size * rank : size * (rank + 1)]
    return torch.nn.functional.pad(part, (0, size - len(part)))


def _weights(zero: Any) -> Iterator[tuple[int, Any, torch.Tensor]]:
    """Each trained weight in order: the number of its group, itself, and the flat part of its subgroup that trains."""
    for number, (weights, flat) in enumerate(zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True)):
        for parameter in weights:
            yield zero.sub_group_to_group_id[number], parameter, flat


def _settings(group: State) -> State:
    return {key: value for key, value in group.items() if key != "params"} | {"params": []}


def _is_parted(value: Any, flat: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == flat.shape


def _alone(value: Any) -> Any:
    return value.cpu().clone() if isinstance(value, torch.Tensor) else value
