"""Old rows learnt as text beside a loss of another kind (PPO-ptx; Ouyang et al. 2022, arXiv 2203.02155, eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

IGNORE = -100


Learnt: TypeAlias = tuple[list[int], list[int]]
"""Token ids of a row, and those that are learnt, -100 elsewhere."""


@dataclass(frozen=True)
class Stream:
    """The rows beside each update, in turn through all; the same for the same update whatever went before.

    Args:
        learnt: the rows.
        size: rows beside one update.
    """

    learnt: Sequence[Learnt]
    size: int

    def rows(self, update: int) -> list[Learnt]:
        """Those beside the update of that number, counted from 0."""
        return [self.learnt[(update * self.size + k) % len(self.learnt)] for k in range(self.size)]


def learnt(ids: Sequence[int], labels: Sequence[int]) -> Learnt:
    """A row whose first token is not learnt: nothing stands before it from which it could be told."""
    return list(ids), [IGNORE, *labels[1:]]


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
