"""The KL to the policy that came in, as a term of a loss over answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from align.data.encode import IGNORE
from align.penalties.kl import Incoming, divergence, hidden_states
from align.trainers.base import BaseTrainer, autocast
from align.trainers.terms import Term


class NearIncoming(BaseTrainer):
    """Mixed in before a TRL trainer whose batches have `labels`, and whose loss is a mean over their tokens."""

    incoming: Incoming | None = None

    def stay_near(self, weight: float) -> None:
        """Add KL(incoming || now) in nats per trained token, times a weight; of the policy as it is at this call."""
        self.incoming = Incoming(self.model)
        self.terms = [*self.terms, Term("kl", self._of_batch, lambda: weight)]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss, with both policies' hidden states at hand for the term."""
        if self.incoming is None or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self._both(inputs, num_items_in_batch):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @contextmanager
    def _both(self, inputs: Mapping[str, Any], items: torch.Tensor | int | None) -> Iterator[None]:
        """The incoming policy's pass, before the own one; and the hidden states of that, when it comes."""
        assert self.incoming is not None
        given = {name: value for name, value in inputs.items() if name != "labels"}
        with autocast(self):  # ended before the step's own, which would take its copies of the weights
            before = self.incoming.hidden(self.model, {**given, "use_cache": False})
        seen = list[torch.Tensor]()
        with hidden_states(self.model, seen):
            self._batch = inputs["labels"], before, seen, items
            yield
        del self._batch

    def _of_batch(self, model: nn.Module) -> torch.Tensor:
        """Of this micro-batch, so that the mean over all of an update is the mean over the update's tokens."""
        assert self.incoming is not None
        labels, before, seen, items = self._batch
        where = labels[:, 1:] != IGNORE
        width = labels.size(1)  # a learnt prompt stands before them
        now, then = (hidden[:, -width:][:, :-1][where] for hidden in (seen[0], before))
        total = divergence(model, self.incoming, now, then)
        if items is None:
            items, share = where.sum(), 1
        else:
            share = self.current_gradient_accumulation_steps
            if self.args.average_tokens_across_devices:  # then these are the tokens of all processes
                share *= self.accelerator.num_processes
        found: torch.Tensor = total * share / torch.as_tensor(items, device=total.device).clamp(min=1)
        return found
