"""Checkpoints of a trainer whose engine shares out weights or state, in the form that they have without it.

DeepSpeed's own hold each process's part as a pickle, for that number of processes alone; FSDP's of an adapter hold the
whole base. Here weights and state are put together one by one, so that any number of processes goes on with any engine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from align.policy.partitioned import is_shared_out, to_save
from align.trainers import fsdp, zero, zero3

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object

State = dict[str, Any]


class PortableCheckpoints(Trainer):
    """Mixed in before a TRL trainer. With DDP each method is transformers' own.

    Attributes:
        made: the settings of each group of weights as the optimizer was made; None for one that is still there.
            DeepSpeed removes a group without weights, as that of an adapter without biases is.
    """

    made: list[State | None]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Remember the groups that DeepSpeed is going to remove."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        self.remember(optimizer)
        return optimizer

    def remember(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's groups for those that were made."""
        stay = [bool(group["params"]) or not self.is_deepspeed_enabled for group in optimizer.param_groups]
        self.made = [None if one else dict(group) for one, group in zip(stay, optimizer.param_groups, strict=True)]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what is trained; transformers would gather and copy the frozen base of an adapter too."""
        if not self._shares():
            super().save_model(output_dir, _internal_call)
            return
        weights = to_save(self.model, keep=self.args.should_save) if is_shared_out(self.model) else None
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _shares(self) -> bool:
        """Whether an engine shares out weights or state."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._shares():
            super()._save_optimizer_and_scheduler(output_dir)
            return
        engine, optimizer = self._shared()
        state = engine.gathered(optimizer, keep=self.args.should_save)
        if state is not None:
            state["param_groups"] = zero.with_removed(state["param_groups"], self.made)
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            scheduler = self.lr_scheduler.state_dict()
            lists = {key for key, value in scheduler.items() if isinstance(value, list)}  # a value for each group
            scheduler |= {key: zero.with_removed(scheduler[key], self.made) for key in lists}
            torch.save(scheduler, Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | os.PathLike[str] | None
    ) -> Any:
        """Go on from a checkpoint: an engine takes its parts from the weights that it finds."""
        if not self._shares() or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._load_from_checkpoint(str(resume_from_checkpoint))
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_optimizer_and_scheduler(str(resume_from_checkpoint))
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Give the engine its part of the state."""
        if not self._shares() or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state, scheduler = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        state["param_groups"] = zero.without_removed(state["param_groups"], self.made)
        engine, optimizer = self._shared()
        engine.scatter(optimizer, state)
        lists = {key for key, value in scheduler.items() if isinstance(value, list)}
        scheduler |= {key: zero.without_removed(scheduler[key], self.made) for key in lists}
        self.lr_scheduler.load_state_dict(scheduler)

    def _shared(self) -> tuple[Any, Any]:
        """What knows how the engine shares out an optimizer's state, and that optimizer."""
        if not self.is_deepspeed_enabled:
            return fsdp, self.optimizer.optimizer
        return zero3 if self.model_wrapped.zero_optimization_stage() == 3 else zero, self.model_wrapped.optimizer
