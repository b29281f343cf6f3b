"""Which batches of a measurement each process computes.

Batches are the same whatever the number of processes, and each is computed whole by one of them: so the figures are
the same too, to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

from align.run_folder import heartbeats

T = TypeVar("T")
B = TypeVar("B", bound=Sized)


@dataclass(frozen=True)
class Share:
    """The place of one process among those that measure together.

    Attributes:
        passed: is told after each batch how many rows all processes have gone through since the last.
    """

    rank: int = 0
    world: int = 1
    passed: Callable[[int], None] = lambda _: None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def mine(self, batches: Sequence[B]) -> Iterator[tuple[int, B]]:
        """Every `world`-th batch with its number; they come in the order of their size, so that shares are alike."""
        for number in range(self.rank, len(batches), self.world):
            yield number, batches[number]
            heartbeats.beat()
            self.passed(len(batches[number]) * self.world)

    def together(self, found: Mapping[int, T]) -> dict[int, T]:
        """What all processes found, in all of them. A collective call where there are several."""
        if self.world == 1:
            return dict(found)
        import torch

        parts: list[Mapping[int, T]] = [{}] * self.world
        torch.distributed.all_gather_object(parts, found)
        return {number: value for part in parts for number, value in part.items()}
