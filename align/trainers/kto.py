"""KTO on TRL's KTOTrainer (Ethayarajh et al. 2024, arXiv 2402.01306), against the policy that came in.

KTO holds an answer against the KL of its batch, estimated from prompts with answers to other prompts of the batch, so
that every epoch has the same batches.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import nn
from trl import KTOTrainer

from align.data.order import RowOrder
from align.trainers.reference import KeptReference, answer_log_probs

REFERENCE, KL_REFERENCE = "ref_logps", "ref_KL_logps"  # columns, by TRL's names
ANSWER, KL_ANSWER = "completion_ids", "KL_completion_ids"


class OneOrder(RowOrder):
    """The order of the first epoch, in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """It stays."""


class KtoTrainer(KeptReference, KTOTrainer):
    """KTOTrainer over token ids, with the reference's log-probabilities beside them."""

    def __init__(self, *, args: Any, **arguments: Any) -> None:
        strategy, args.train_sampling_strategy = args.train_sampling_strategy, "sequential"  # TRL takes no other
        super().__init__(args=args, **arguments)
        args.train_sampling_strategy = strategy
        order, steps = self.row_order(), args.max_steps
        rows, used = order.rows(0), None if steps <= 0 else steps * order.batch
        self.train_dataset: Dataset = self._with_reference(self.train_dataset, rows, order.batch, "train", used)
        if self.eval_dataset is not None:
            held, batch = self.eval_dataset, args.per_device_eval_batch_size
            self.eval_dataset: Dataset = self._with_reference(held, list(range(len(held))), batch, "eval", None)

    def row_order(self) -> RowOrder:
        """The same in every epoch."""
        found = super().row_order()
        return OneOrder(found.lengths, found.groups, found.batch, found.strategy, found.seed)

    def _with_reference(self, rows: Dataset, order: list[int], batch: int, name: str, used: int | None) -> Dataset:
        """Add the incoming policy's log-probabilities, and the answers that KL is estimated from."""
        columns = [REFERENCE]
        if self.calculate_KL:
            rows = rows.add_column(KL_ANSWER, [rows[ANSWER][i] for i in other_answers(order, batch, len(rows))])
            columns.append(KL_REFERENCE)
        return self.referenced(rows, sorted(set(order[:used])), name, columns)

    def reference_log_probs(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Of the answers and, where KL is estimated, of those to other prompts: (1 or 2, rows)."""
        prefixes = ("", "KL_") if self.calculate_KL else ("",)
        return torch.stack([answer_log_probs(model, batch, prefix) for prefix in prefixes])


def other_answers(order: list[int], batch: int, count: int) -> list[int]:
    """For each row the row whose answer its prompt gets in the estimate of KL: the one before it in its batch, and for
    the first the last, as TRL has it.

    Args:
        order: row indices, batch after batch.
        batch: rows of a batch over all processes and accumulation steps.
        count: rows in all.
    """
    found = list(range(count))
    for start in reversed(range(0, len(order), batch)):  # a row that comes twice has its place in the first batch
        rows = order[start : start + batch]
        for i, row in enumerate(rows):
            found[row] = rows[i - 1]
    return found
