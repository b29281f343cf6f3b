"""Old rows learnt as text beside a loss of another kind (PPO-ptx; Ouyang et al. 2022, arXiv 2203.02155, eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

IGNORE = -100


@dataclass(frozen=True)
class Stream:
    """Batches of rows, the same for the same number whatever went before.

    Args:
        ids, labels: token ids of each row, and those that count, -100 elsewhere.
        size: rows of a batch.
        pad: the token that fills rows up.
    """

    ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]
    size: int
    pad: int

    def batch(self, number: int, device: torch.device) -> dict[str, torch.Tensor]:
        """The batch of that number, in turn through all rows: `input_ids`, `attention_mask`, `labels`, each
        (size, tokens)."""
        chosen = [(number * self.size + k) % len(self.ids) for k in range(self.size)]
        width = max(len(self.ids[i]) for i in chosen)
        ids = torch.full((len(chosen), width), self.pad)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
        for row, i in enumerate(chosen):
            n = len(self.ids[i])
            ids[row, :n], labels[row, :n] = torch.tensor(list(self.ids[i])), torch.tensor(list(self.labels[i]))
            mask[row, :n] = 1
        found = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: tensor.to(device) for name, tensor in found.items()}


def rows_of_update(ratio: float, answers: int) -> int:
    """How many replayed rows stand beside so many answers, for their share in both to be `ratio`; one at least."""
    return max(1, round(answers * ratio / (1 - ratio)))
