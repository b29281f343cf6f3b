"""Room on the disk for a checkpoint, looked at before it is written: what is torn helps nobody."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.errors import AlignError, Exit
from align.run_folder import checkpoints


class Room(TrainerCallback):
    """Ends a stage before a checkpoint that would not fit; the one before it is kept."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if not control.should_save or not state.is_local_process_zero or args.output_dir is None:
            return
        folder = Path(args.output_dir)
        needed = self._needed(folder)
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        if needed > free:
            what = f"the checkpoint of step {state.global_step} takes about {needed / 1e6:,.1f} MB, but only "
            remedy = "free some space, and run the same command again: it goes on from the checkpoint before"
            raise AlignError(f"{what}{free / 1e6:,.1f} MB are free in '{folder}'", remedy, exit=Exit.MACHINE)

    on_epoch_end = on_step_end

    def _needed(self, folder: Path) -> int:
        """Bytes of the last checkpoint; of the first, of what is trained and of what the optimizer keeps."""
        for last in checkpoints.latest_first(folder):
            return sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
        trained = [one for one in self.trainer.model.parameters() if one.requires_grad]
        states = getattr(self.trainer.optimizer, "state", None) or {}
        kept = [one for state in states.values() for one in state.values() if isinstance(one, torch.Tensor)]
        return int(sum(one.numel() * one.element_size() for one in (*trained, *kept)))
