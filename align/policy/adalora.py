"""AdaLoRA's budget (Zhang et al. 2023, arXiv 2303.10512): which ranks of which matrices stay, decided as it trains.

PEFT leaves it to the training loop to call `update_and_allocate` after every step, and keeps its estimates of
importance out of checkpoints. Without the calls nothing is ever pruned; without the estimates a resumed run prunes
otherwise than one that was never interrupted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import AdaLoraModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.errors import AlignError, Exit
from align.policy.stack import TRAINED

FILE = "rank_allocator.safetensors"
_ESTIMATES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def is_allocated(model: Any) -> bool:
    """Whether a model trains an AdaLoRA adapter."""
    return isinstance(getattr(model, "base_model", None), AdaLoraModel)


class Allocate(TrainerCallback):
    """Prunes ranks after each step; `checkpoint` is the folder that training goes on from."""

    def __init__(self, model: Any, checkpoint: Path | None) -> None:
        self.tuner, self.checkpoint = model.base_model, checkpoint
        self.pattern: dict[str, list[bool]] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        config, allocator = self.tuner.peft_config[TRAINED], self.tuner.rankallocator
        if config.tinit >= state.max_steps - config.tfinal:
            what = (
                f"AdaLoRA's tinit {config.tinit} and tfinal {config.tfinal} leave no step of {state.max_steps} to prune"
            )
            raise AlignError(what, "lower them under `peft:`, or train longer", exit=Exit.BAD_INPUT)
        config.total_step = state.max_steps
        allocator.set_total_step(state.max_steps)
        if self.checkpoint is not None:
            self._load(allocator, self.checkpoint / FILE, args.device)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        config = self.tuner.peft_config[TRAINED]
        config.rank_pattern = self.pattern
        self.tuner.update_and_allocate(state.global_step + 1)
        # a checkpoint with a pattern in its settings would hold the pruned ranks no more, which may come back yet
        self.pattern, config.rank_pattern = config.rank_pattern, None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero or not args.output_dir:
            return
        allocator = self.tuner.rankallocator
        tensors = {
            f"{kind}/{name}": tensor.contiguous()
            for kind in _ESTIMATES
            for name, tensor in getattr(allocator, kind).items()
        }
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_file(tensors, folder / FILE, metadata={"rank_pattern": json.dumps(self.pattern)})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.tuner.peft_config[TRAINED].rank_pattern = self.pattern

    def _load(self, allocator: Any, file: Path, device: Any) -> None:
        with safe_open(file, framework="pt", device=str(device)) as stored:
            self.pattern = json.loads(stored.metadata()["rank_pattern"])
            for key in list(stored.keys()):
                kind, _, name = key.partition("/")
                getattr(allocator, kind)[name] = stored.get_tensor(key)
