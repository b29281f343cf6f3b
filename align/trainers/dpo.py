"""DPO on TRL's DPOTrainer (Rafailov et al. 2023, arXiv 2305.18290), against the policy that came in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import nn
from trl import DPOTrainer

from align.trainers import aot, masks
from align.trainers.held_out import HeldOut
from align.trainers.kept_reference import KeptReference, token_log_probs
from align.trainers.means import Seen

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # by TRL's names
_OF_PAIRS = ("chosen", "rejected", "accuracies", "margins")


class DpoTrainer(HeldOut, KeptReference, DPOTrainer):
    """DPOTrainer over token ids, with the reference's log-probabilities beside them."""

    units: ClassVar = {
        **{f"rewards/{name}": "pairs" for name in _OF_PAIRS},
        **dict.fromkeys(("logps/chosen", "logps/rejected"), "pairs"),
        **dict.fromkeys(("logits/chosen", "mean_token_accuracy"), "chosen tokens"),
        "logits/rejected": "rejected tokens",
        "entropy": "tokens",
    }
    loss_unit = "pairs"
    more_columns = masks.PAIR

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._sorted: list[torch.Tensor] = []  # held-out pairs that are compared as a whole
        self.data_collator: Any = masks.like(masks.PairCollator, self.data_collator)
        rows = self.step_rows()
        self.refer_steps(rows, COLUMNS)
        self.train_dataset: Any = rows
        if self.eval_dataset is not None:
            self.eval_dataset: Dataset = self.refer_held_out(self.eval_dataset, COLUMNS)

    def reference_log_probs(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Of the chosen and of the rejected answers, (2, pairs)."""
        sums = summed(token_log_probs(model, batch), batch["completion_mask"][:, 1:], self.ld_alpha)
        return sums.reshape(2, -1)  # the collator puts the chosen ones first

    def counts(self, inputs: Mapping[str, torch.Tensor], outputs: Any) -> dict[str, torch.Tensor]:
        """Pairs, and the tokens of both sides."""
        chosen, rejected = inputs["completion_mask"][:, 1:].sum(1).chunk(2)
        return {
            "pairs": torch.tensor(len(chosen), device=chosen.device),
            "chosen tokens": chosen.sum(),
            "rejected tokens": rejected.sum(),
            "tokens": chosen.sum() + rejected.sum(),
        }

    def loss_pieces(self, model: Any, inputs: dict[str, Any]) -> dict[str, float]:
        """The loss `sft` is a mean over tokens, and `aot` none over anything: both come off what is one over pairs."""
        seen = Seen(model)
        whole = float(self.compute_loss(seen, inputs))
        mask = inputs["completion_mask"][:, 1:]
        each = seen.outputs[-1].log_probs[:, -mask.size(1) :]
        references = torch.stack([inputs[column] for column in COLUMNS])
        log_probs = torch.cat([summed(each, mask, self.ld_alpha).reshape(2, -1), references])
        by_token = 0.0
        for kind, weight in zip(self.loss_types, self.loss_weights, strict=True):
            if kind == "sft":
                chosen = slice(0, len(mask) // 2)
                value = -float(each[chosen][mask[chosen].bool()].mean())
                by_token += weight * value
                whole -= weight * value
            elif kind in aot.LOSSES:
                whole -= weight * aot.loss(kind, log_probs, self.beta, self.label_smoothing)
        if set(self.loss_types) & set(aot.LOSSES):
            self._sorted.append(log_probs)
        return {"pairs": whole, "chosen tokens": by_token}

    def rest_of_loss(self) -> float:
        """That of the losses that sort all pairs."""
        weights: dict[str, float] = dict(zip(self.loss_types, self.loss_weights, strict=True))
        kinds = [kind for kind in aot.LOSSES if kind in weights]
        if not kinds:
            return 0.0
        pairs, self._sorted = aot.of_all_processes(self._sorted), []
        return sum(weights[kind] * aot.loss(kind, pairs, self.beta, self.label_smoothing) for kind in kinds)


def summed(each: torch.Tensor, mask: torch.Tensor, alpha: float | None) -> torch.Tensor:
    """Log-probabilities of tokens as those of answers, the chosen ones first, in TRL's order of adding up.

    Args:
        each: (2 * pairs, tokens), 0 where nothing counts.
        mask: of the same shape, 1 at tokens of answers.
        alpha: what tokens beyond the length of the shorter answer count (LD-DPO, Liu et al. 2024, arXiv 2409.06411).

    Returns:
        (2 * pairs,)
    """
    if alpha is None:
        return each.sum(dim=1)
    shared = torch.minimum(*mask.sum(dim=1).chunk(2)).repeat(2).unsqueeze(1)
    beyond = mask.cumsum(dim=1) > shared
    return (each * ~beyond).sum(dim=1) + alpha * (each * beyond).sum(dim=1)
