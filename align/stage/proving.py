"""What a job is told of the proofs of its launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainerCallback


class Proving(Protocol):
    """Makes the proofs before the first update; see align.proofs.start."""

    def callback(self, trainer: Trainer) -> TrainerCallback:
        """What is added to the trainer, before its model is wrapped. All processes call it."""

    def rollout(self, trainer: Trainer, kl: torch.Tensor | None, lengths: torch.Tensor) -> None:
        """Look at a rollout before an update is made of it. All processes call it.

        Args:
            kl: log ratio of policy to reference of each of this process's answers, nats, (answers,); None without a
                reference.
            lengths: tokens of each, (answers,).
        """
