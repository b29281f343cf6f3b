"""Checkpoints of trainers that sample answers, also inside a rollout: what is left of it is kept and trained on."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from align.errors import AlignError, Exit
from align.rl import critic
from align.run_folder import files
from align.trainers.minibatches import divided

if TYPE_CHECKING:
    from trl import RLOOTrainer as Trainer

    from align.rl.recorder import Recorder
else:
    Trainer = object

# of a checkpoint; in a folder of their own: transformers takes every safetensors file beside the weights for weights
OWN, ROLLOUT, STATE = "online", "rollout.safetensors", "rollout.json"


class RolloutCheckpoints(Trainer):
    """Mixed in before a TRL trainer that samples answers; each method of TRL's and transformers' calls `super()`."""

    record: Recorder
    times = Fraction(1)  # as many passes has a rollout now as when the checkpoint was written
    _step: int
    _buffered_inputs: list[dict[str, Any]] | None

    @property
    def passes_per_rollout(self) -> int:
        """Forward passes of a process that are made from one rollout."""
        found: int = self.args.steps_per_generation * self.num_iterations
        return found

    def progress(self) -> dict[str, Any]:
        """What a checkpoint holds besides TRL's and transformers' own; JSON."""
        made = {"step": self._step, "passes": self.passes_per_rollout, "processes": self.accelerator.num_processes}
        return made | self.record.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Put it back. The same rollout may be cut into smaller minibatches now, and so have more passes.

        Raises:
            AlignError: it is in the middle of a rollout that cannot go on in this way.
        """
        step, now = state["step"], self.passes_per_rollout
        passes, before = state.get("passes", now), state["processes"]  # an older align has not written the first
        what = "the checkpoint is in the middle of a rollout"
        if step % passes and before != self.accelerator.num_processes:
            what += f" with {before} processes, but there are {self.accelerator.num_processes} now"
            raise AlignError(what, f"run with `--processes {before}`", exit=Exit.BAD_INPUT)
        if step % passes and (step * now) % passes:
            what += f" of {passes} passes, and there would be {now} now"
            remedy = "write `per_device_train_batch_size` and `steps_per_generation` as they were"
            raise AlignError(what, remedy, exit=Exit.BAD_INPUT)
        self._step, self.times = step * now // passes, Fraction(now, passes)
        self.record.load(state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The policy's files hold nothing of the critic's."""
        if not isinstance(self.model, PeftModel):  # whose own saving takes the trained adapter alone
            found = self.model.state_dict() if state_dict is None else state_dict
            state_dict = {name: t for name, t in found.items() if not critic.is_critic(name)}
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = self._checkpoint(trial)
        rank = self.accelerator.process_index
        tensors: dict[str, torch.Tensor] = {}
        if self._step % self.passes_per_rollout and self._buffered_inputs is not None:  # within a rollout
            for number, batch in enumerate(self._buffered_inputs):
                tensors |= {f"{number}/{k}": v.contiguous() for k, v in batch.items() if isinstance(v, torch.Tensor)}
        if tensors:
            folder.mkdir(exist_ok=True)
            save_file({name: t.clone() for name, t in tensors.items()}, folder / f"{rank}-{ROLLOUT}")
        if self.accelerator.is_main_process:
            files.write_text(folder / STATE, json.dumps(self.progress()))

    def _checkpoint(self, trial: Any) -> Path:
        """Our folder in the checkpoint that is being written."""
        return Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}" / OWN

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self.restored(Path(checkpoint))
        file = Path(checkpoint) / OWN / f"{self.accelerator.process_index}-{ROLLOUT}"
        if file.is_file():
            batches: dict[int, dict[str, Any]] = {}
            for name, tensor in load_file(file).items():
                number, _, key = name.partition("/")
                batches.setdefault(int(number), {})[key] = tensor.to(self.accelerator.device)
            self._buffered_inputs = divided([batches[number] for number in sorted(batches)], self.times)

    def restored(self, checkpoint: Path) -> None:
        """Put back what a checkpoint holds of ours besides a rollout under way."""
        self.restore(files.read_json(checkpoint / OWN / STATE))
