"""What RLOO and GRPO share: TRL's own loss, and a record of what it measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from align.trainers.online import Online, changed


class TrlLoss(Online):
    """An online trainer that learns by TRL's own loss, as it is; what that measures goes into the record."""

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The model as it is trained, with a reference where `beta` asks for one; as it was, afterwards."""
        with self.at_work(compared=bool(self.beta)):
            yield

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        out = super()._generate_and_score_completions(inputs)
        answers, mask = self.seen.completion_ids, out["completion_mask"]
        scores, scored = self.scores(len(inputs))
        kl = None
        if self.beta:
            if len(self.seen.reference) != 1 or len(self.seen.log_probs) > 1:
                raise changed("one pass of the reference in a rollout")
            # GRPO makes no pass of the policy where all updates of a rollout are one step of the optimizer
            own = self.seen.log_probs[0] if self.seen.log_probs else self.log_probs_of(self.model, out)
            kl = ((own - self.seen.reference[0]) * mask).sum(1)
        lengths = torch.tensor([len(ids) for ids in answers], device=mask.device)
        cut = torch.tensor([float(ids[-1] not in self.eos_token_ids) for ids in answers], device=mask.device)
        self.begin(scores, scored, lengths, cut, kl)
        return out

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        sums, measured = self.record.sums, self._metrics["train"]
        for name, theirs in (("entropy", "entropy"), ("clip_fraction", "clip_ratio/region_mean")):
            if measured.get(theirs):
                sums[name].append(measured[theirs][-1])
        parts = self.current_gradient_accumulation_steps if self.loss_is_scaled_for_ga else 1
        sums["policy_loss"].append(float(self.summed(loss.detach())) * parts / self.accelerator.num_processes)
        return loss
