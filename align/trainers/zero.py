"""The state of an optimizer that ZeRO-2 shares out, put together as torch's own has it, and shared out again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

State = dict[str, Any]


def with_removed(values: list[Any], made: list[State | None]) -> list[Any]:
    """What each group of weights has, with those groups in their places that DeepSpeed removed.

    Args:
        made: as of `PortableCheckpoints`. Such a group is taught as fast as the others.
    """
    left = iter(values)
    return [next(left) if settings is None else _removed(values[0], settings) for settings in made]


def without_removed(values: list[Any], made: list[State | None]) -> list[Any]:
    """The same the other way round."""
    return [value for value, settings in zip(values, made, strict=True) if settings is None]


def _removed(other: Any, settings: State) -> Any:
    if not isinstance(other, dict) or "params" not in other:
        return other
    return {**other, "weight_decay": settings["weight_decay"], "params": []}


def gathered(zero: Any, *, keep: bool) -> State | None:
    """The state of DeepSpeed's optimizer as torch's optimizer has it on its own. A collective call.

    Args:
        zero: DeepSpeed's optimizer around torch's.
        keep: whether this process wants it; the others only take part, and get None.
    """
    found: State = {"state": {}, "param_groups": []}
    for group, lies, parameters in _groups(zero):
        numbers = range(len(found["state"]), len(found["state"]) + len(parameters))
        found["param_groups"].append({**{k: v for k, v in group.items() if k != "params"}, "params": [*numbers]})
        flat = zero.optimizer.state[lies]
        parted = [key for key, value in flat.items() if _is_parted(value, lies)]
        for number, parameter in zip(numbers, parameters, strict=True):
            own = {key: value for key, value in flat.items() if key not in parted}
            own |= {key: _whole(parameter, flat[key]) for key in parted}
            found["state"][number] = {key: _alone(value) for key, value in own.items()} if keep else {}
    return found if keep else None


def scatter(zero: Any, state: State) -> None:
    """Give DeepSpeed's optimizer this process's part of a state.

    Raises:
        ValueError: it is of other weights.
    """
    saved_groups = state["param_groups"]
    if [len(group["params"]) for group in saved_groups] != [len(parameters) for _, _, parameters in _groups(zero)]:
        raise ValueError("the checkpoint's optimizer has other weights than the model trains")
    for (group, lies, parameters), saved in zip(_groups(zero), saved_groups, strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
        owned = [state["state"][number] for number in saved["params"]]
        zero.optimizer.state[lies] = _part(lies, parameters, owned, group)


def _whole(parameter: Any, flat: torch.Tensor) -> torch.Tensor:
    """What all processes have for one weight; in its shape. A collective call.

    `get_full_hp_param` of DeepSpeed 0.19.8 finds the state of the first group alone.
    """
    found, mapping = torch.zeros_like(parameter, dtype=flat.dtype).flatten(), parameter._hp_mapping
    if mapping is not None:  # else it lies in the parts of other processes
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        found.narrow(0, there.start, there.numel).copy_(flat.narrow(0, here.start, here.numel))
    torch.distributed.all_reduce(found)
    return found.reshape(parameter.shape)


def alone(value: Any, lies: torch.Tensor, group: State) -> Any:
    """What stands once for a weight, as the number of its steps; a fused kernel reads it on the weights' device."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(lies.device, copy=True) if group.get("fused") or group.get("capturable") else value.clone()


def _part(lies: torch.Tensor, parameters: list[Any], owned: list[State], group: State) -> State:
    """The state of this process's part: of a tensor with a number for each weight, (weights of the part,)."""
    part: State = {}
    for parameter, own in zip(parameters, owned, strict=True):
        for key, value in own.items():
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or value.dim() == 0:
                part[key] = alone(value, lies, group)
                continue
            flat = part.setdefault(key, torch.zeros_like(lies))
            mapping = parameter._hp_mapping
            if mapping is not None:  # else it lies in the parts of other processes
                here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                piece = value.flatten().narrow(0, there.start, there.numel)
                flat.narrow(0, here.start, here.numel).copy_(piece)
    return part


def _groups(zero: Any) -> Iterator[tuple[State, torch.Tensor, list[Any]]]:
    """Of each group of weights: its settings, this process's flat part, and the whole weights in their order."""
    groups = zero.optimizer.param_groups
    return zip(groups, zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)


def _is_parted(value: Any, lies: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == lies.shape


def _alone(value: Any) -> Any:
    return value.cpu().clone() if isinstance(value, torch.Tensor) else value
