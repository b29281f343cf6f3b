"""DPO on TRL's DPOTrainer (Rafailov et al. 2023, arXiv 2305.18290), against the policy that came in."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import nn
from trl import DPOTrainer

from align.trainers.reference import KeptReference, answer_log_probs

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # by TRL's names


class DpoTrainer(KeptReference, DPOTrainer):
    """DPOTrainer over token ids, with the reference's log-probabilities beside them."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        rows, steps = self.train_dataset, self.args.max_steps
        used = sorted(self.row_order().used(steps)) if steps > 0 else list(range(len(rows)))
        self.train_dataset: Dataset = self.referenced(rows, used, "train", COLUMNS)
        if self.eval_dataset is not None:
            held = self.eval_dataset
            self.eval_dataset: Dataset = self.referenced(held, range(len(held)), "eval", COLUMNS)

    def reference_log_probs(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Of the chosen and of the rejected answers, (2, pairs)."""
        return answer_log_probs(model, batch).reshape(2, -1)  # the collator puts the chosen ones first
