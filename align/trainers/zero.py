"""Checkpoints of a trainer that DeepSpeed's ZeRO-2 runs, in the form that the same trainer writes without it.

DeepSpeed's own hold each process's part as a pickle, for that number of processes alone. Here the optimizer's state is
put together weight by weight, so that any number of processes, with or without DeepSpeed, goes on from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object

State = dict[str, Any]


class ZeroCheckpoints(Trainer):
    """Mixed in before a TRL trainer. Without DeepSpeed each method is transformers' own.

    Attributes:
        made: the settings of each group of weights as the optimizer was made; None for one with weights. DeepSpeed
            removes a group without any, as that of an adapter without biases is.
    """

    made: list[State | None]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Remember the groups that DeepSpeed is going to remove."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        self.made = [None if group["params"] else dict(group) for group in optimizer.param_groups]
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights are whole in the first process; transformers would copy those of the frozen base too."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self._save(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gathered(self.model_wrapped.optimizer, keep=self.args.should_save)
        if state is not None:
            state["param_groups"] = with_removed(state["param_groups"], self.made)
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            scheduler = self.lr_scheduler.state_dict()
            lists = {key for key, value in scheduler.items() if isinstance(value, list)}  # a value for each group
            scheduler |= {key: with_removed(scheduler[key], self.made) for key in lists}
            torch.save(scheduler, Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | os.PathLike[str] | None
    ) -> Any:
        """Go on from a checkpoint: DeepSpeed takes its parts from the weights that it finds."""
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._load_from_checkpoint(str(resume_from_checkpoint))
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        state, scheduler = (
            torch.load(Path(resume_from_checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        state["param_groups"] = without_removed(state["param_groups"], self.made)
        scatter(self.model_wrapped.optimizer, state)
        lists = {key for key, value in scheduler.items() if isinstance(value, list)}
        scheduler |= {key: without_removed(scheduler[key], self.made) for key in lists}
        self.lr_scheduler.load_state_dict(scheduler)
        return prepared


def with_removed(values: list[Any], made: list[State | None]) -> list[Any]:
    """What each group of weights has, with those groups in their places that DeepSpeed removed.

    Args:
        made: as of `ZeroCheckpoints`. Such a group is taught as fast as the others.
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
        zero.optimizer.state[lies] = _part(lies, parameters, owned)


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


def _part(lies: torch.Tensor, parameters: list[Any], owned: list[State]) -> State:
    """The state of this process's part: of a tensor with a number for each weight, (weights of the part,)."""
    part: State = {}
    for parameter, own in zip(parameters, owned, strict=True):
        for key, value in own.items():
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or value.dim() == 0:
                part[key] = value.clone() if isinstance(value, torch.Tensor) else value
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
