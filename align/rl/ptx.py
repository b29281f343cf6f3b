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
        return padded([self.ids[i] for i in chosen], [self.labels[i] for i in chosen], self.pad, device)


def padded(
    ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], pad: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Rows as a batch for a language model: `input_ids`, `attention_mask`, `labels`, each (rows, tokens)."""
    width = max(map(len, ids))
    found = {"input_ids": torch.full((len(ids), width), pad)}
    found["attention_mask"] = torch.zeros_like(found["input_ids"])
    found["labels"] = torch.full_like(found["input_ids"], IGNORE)
    for row, (own, learnt) in enumerate(zip(ids, labels, strict=True)):
        n = len(own)
        found["input_ids"][row, :n], found["labels"][row, :n] = torch.tensor(list(own)), torch.tensor(list(learnt))
        found["attention_mask"][row, :n] = 1
    return {name: tensor.to(device) for name, tensor in found.items()}


def rows_of_update(ratio: float, answers: int) -> int:
    """How many replayed rows stand beside so many answers, for their share in both to be `ratio`; one at least."""
    return max(1, round(answers * ratio / (1 - ratio)))
