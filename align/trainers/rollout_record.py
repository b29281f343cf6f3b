"""The rollouts of a trainer that samples answers: the order in which it asks its prompts, and a record of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from align.rl.prompt_order import PromptOrder
from align.trainers.rollout_checkpoints import RolloutCheckpoints

if TYPE_CHECKING:
    from align.rl.rollouts import Rollout


class RolloutRecord(RolloutCheckpoints):
    """Mixed in before a TRL trainer that samples answers; each method of TRL's calls `super()`."""

    num_generations: int

    def finish(self) -> list[Rollout]:
        """The rollouts of a run that came to its end: also the last, where `max_steps` left some of its updates out."""
        if self.record.open is not None:
            self.record.close(self.state.global_step, write=self.accelerator.is_main_process)
        return self.record.history

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        found: torch.Tensor = super().training_step(*args, **kwargs)
        if self._step % self.passes_per_rollout == 0 and self.record.open is not None:
            done = self.record.close(self.state.global_step, write=self.accelerator.is_main_process)
            for name, value in self.logged(done).items():
                self._metrics["train"][name].append(value)
        return found

    def logged(self, done: Rollout) -> dict[str, float]:
        """What metrics.jsonl and trackers get of a rollout besides TRL's own figures."""
        return {} if done.score is None else {"score": done.score}

    def summed(self, x: torch.Tensor) -> torch.Tensor:
        """Over all processes."""
        found: torch.Tensor = self.accelerator.reduce(x, reduction="sum")
        return found

    # ---- the order of prompts -------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.prompt_order()

    def prompt_order(self) -> PromptOrder:
        """The order of prompts; independent of the number of processes at the same size of a rollout."""
        args = self.args
        seed = None if args.train_sampling_strategy == "sequential" else args.seed
        prompts, steps = args.generation_batch_size // self.num_generations, args.steps_per_generation
        return PromptOrder(len(self.train_dataset), prompts, self.num_generations, self.num_iterations * steps, seed)

    @property
    def planned_rollouts(self) -> int:
        """The rollouts of the whole run."""
        args = self.args
        if args.max_steps > 0:
            return int(-(-args.max_steps * args.gradient_accumulation_steps // self.passes_per_rollout))
        return max(1, round(float(args.num_train_epochs) * self.prompt_order().rollouts))

    def gathered(self, values: Sequence[Any]) -> list[Any]:
        """A list of every process's values, in the order of processes."""
        return list(gather_object(list(values)))
