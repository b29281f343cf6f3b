"""The order in which prompts are asked: the same for any number of processes, and after a resumption."""

from __future__ import annotations

import random
from collections.abc import Iterator


class PromptOrder:
    """A sampler in the pattern that TRL's online trainers expect of theirs.

    An epoch is a list of rollouts; the prompts of each come `samples` times in a row, and the whole rollout as often as
    steps are made from it. TRL's own sampler goes on drawing from one random state, so that a run that is resumed in
    its second epoch would ask in another order.

    Args:
        count: prompts in all.
        prompts: different prompts of a rollout; where there are fewer in all, they come more than once.
        samples: answers to each.
        steps: forward passes made from one rollout, on each process.
        seed: of the order; None keeps the order of the data.
    """

    def __init__(self, count: int, prompts: int, samples: int, steps: int, seed: int | None) -> None:
        self.count, self.prompts, self.samples, self.steps, self.seed = count, prompts, samples, steps, seed
        self.epoch = 0

    @property
    def rollouts(self) -> int:
        """In an epoch; the last is filled up with prompts of the next order."""
        return -(-self.count // self.prompts)

    def set_epoch(self, epoch: int) -> None:
        """Called by transformers, also where it resumes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rollouts * self.prompts * self.samples * self.steps

    def __iter__(self) -> Iterator[int]:
        order = self._order(0)
        for rollout in range(self.rollouts):
            chosen = self._filled(order[rollout * self.prompts : (rollout + 1) * self.prompts])
            for _ in range(self.steps):
                for index in chosen:
                    yield from [index] * self.samples

    def _filled(self, chosen: list[int]) -> list[int]:
        """As many prompts as a rollout has, none of them twice before all have come."""
        number = 0
        while len(chosen) < self.prompts:
            number += 1
            last = set(chosen[len(chosen) // self.count * self.count :])
            chosen = chosen + [index for index in self._order(number) if index not in last]
        return chosen[: self.prompts]

    def _order(self, number: int) -> list[int]:
        order = list(range(self.count))
        if self.seed is not None:
            random.Random(f"prompts {self.seed} {self.epoch} {number}").shuffle(order)
        return order
