"""Which batches of a measurement each process computes.

Batches are the same whatever the number of processes, and each is computed whole by one of them: so the figures are
the same too, to the last digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The place of one process among those that measure together."""

    rank: int = 0
    world: int = 1

    def mine(self, batches: Sequence[T]) -> Sequence[T]:
        """Every `world`-th batch; they come in the order of their size, so that the shares are alike."""
        return batches[self.rank :: self.world]

    def together(self, found: Mapping[int, T]) -> dict[int, T]:
        """What all processes found, in all of them. A collective call where there are several."""
        if self.world == 1:
            return dict(found)
        import torch

        parts: list[Mapping[int, T]] = [{}] * self.world
        torch.distributed.all_gather_object(parts, found)
        return {number: value for part in parts for number, value in part.items()}
