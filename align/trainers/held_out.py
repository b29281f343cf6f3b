"""The loss on held-out rows: a mean over all their tokens, pairs or answers, each once.

transformers takes the mean of the batches' means, over batches in which processes repeat rows until they have equally
many. Here a process takes batches of its own and no row twice, and the sums of all come together at the end, so that
neither the size of a batch nor the number of processes is in the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from align.policy.partitioned import is_shared_out
from align.run_folder import heartbeats
from align.stage.random_state import unmoved
from align.trainers.means import Means, Tally


def batches_of(rows: int, size: int) -> list[list[int]]:
    """Held-out rows as they stand, in batches; process p of P takes every P-th batch from the p-th on."""
    return [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]


class HeldOut(Means):
    """Mixed in before a TRL trainer.

    Attributes:
        loss_unit: the count that the loss is a mean over.
        left: how many of this process's own batches are still to come; further ones are there for other processes.
    """

    loss_unit: ClassVar[str] = ""
    left = 0

    def loss_pieces(self, model: Any, inputs: dict[str, Any]) -> dict[str, float]:
        """The loss of a batch as a sum of means, by the counts that they are means over.

        Args:
            inputs: a collated batch, on the device.
        """
        return {self.loss_unit: float(self.compute_loss(model, inputs))}

    def rest_of_loss(self) -> float:
        """What of the loss is no mean over batches, once all have been gone through, over all processes."""
        return 0.0

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """This process's batches, no row twice; accelerate would fill them up."""
        rows: Dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        args, accelerator = self.args, self.accelerator
        every = batches_of(len(rows), args.per_device_eval_batch_size)
        own = every[accelerator.process_index :: accelerator.num_processes]
        self.left = len(own)
        if is_shared_out(self.model):  # a pass through it takes all processes
            passes = -(-len(every) // accelerator.num_processes)
            own += every[:1] * (passes - len(own))
        return DataLoader(
            rows,
            batch_sampler=own,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """A batch's loss into the tally; transformers gets none, which it would take the mean of batches of."""
        prepared = self._prepare_inputs(inputs)
        self.left -= 1
        with torch.no_grad(), self.compute_loss_context_manager(), by_itself(self.accelerator):
            if self.left < 0:  # for the others to go on
                with self.unrecorded():
                    self.loss_pieces(model, prepared)
                return None, None, None
            for unit, value in self.loss_pieces(model, prepared).items():
                self._pieces.add(unit, value, self.counted[unit])
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """transformers' loop over this process's batches, then the figures over all processes."""
        self._pieces = Tally({unit: unit for unit in self.units.values()})
        # before the first step it is no part of the training, which goes on as without it
        apart = nullcontext() if self.state.global_step else unmoved()
        with heartbeats.during("evaluation"), without_router_loss(self), apart:
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        losses = self._pieces.over_processes(self.accelerator).values()
        output.metrics[f"{metric_key_prefix}_loss"] = sum(losses.values()) + self.rest_of_loss()
        self.tallies["eval"] = self.tallies["eval"].over_processes(self.accelerator)
        return output


@contextmanager
def by_itself(accelerator: Any) -> Iterator[None]:
    """What is gathered stays in this process: batches may be of other sizes in others, and fewer."""
    accelerator.gather = accelerator.gather_for_metrics = _as_it_is
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def _as_it_is(tensor: Any, *_: Any) -> Any:
    return tensor


@contextmanager
def without_router_loss(trainer: Any) -> Iterator[None]:
    """The balance of a mixture's experts hangs on the batch, and says nothing of held-out rows."""
    enabled = getattr(trainer, "aux_loss_enabled", False)
    trainer.aux_loss_enabled = False
    try:
        yield
    finally:
        trainer.aux_loss_enabled = enabled
