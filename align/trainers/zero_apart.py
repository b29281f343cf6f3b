"""Sets of weights of which ZeRO-2 clips the gradients apart, and which can be left out of an update.

DeepSpeed clips by one norm for all weights, and takes its step within the backward pass, before a callback could take a
gradient away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Apart:
    """Stands in front of two methods of DeepSpeed's optimizer. Each of its groups holds weights of one set.

    Args:
        zero: the optimizer of ZeRO-2 around torch's.
        set_of: the name of the set that a weight belongs to.
        limit: largest norm of the gradients of a set (`max_grad_norm`); 0 clips nothing.
        is_left_out: whether a set learns nothing from the update under way; neither weights nor moments change then.
        told: the set of which the norm is reported.
    """

    def __init__(
        self,
        zero: Any,
        set_of: Callable[[torch.nn.Parameter], str],
        limit: float,
        is_left_out: Callable[[str], bool],
        told: str,
    ) -> None:
        self.zero, self.limit, self.is_left_out, self.told = zero, limit, is_left_out, told
        self.sets = [set_of(group[0]) for group in zero.bit16_groups]
        self.norms: dict[str, torch.Tensor] = {}
        self.step = zero._optimizer_step
        zero.clip_grad = 0.0
        zero.scaled_global_norm, zero._optimizer_step = self._norm, self._take

    def _norm(self, norm_type: float = 2) -> torch.Tensor:
        """The norm of each set's gradients, before they are clipped; what is left out counts for nothing. A collective
        call."""
        zero, squares = self.zero, dict[str, torch.Tensor]()
        for number, name in enumerate(self.sets):
            norm = zero.get_grad_norm_direct(zero.averaged_gradients[number], zero.params_in_partition[number])
            norm = torch.where(norm < 0, torch.nan, norm)  # how DeepSpeed writes that one is no number
            squares[name] = squares.get(name, torch.zeros_like(norm)) + norm**2
        self.norms = {name: square.sqrt() for name, square in squares.items()}
        learning = [norm for name, norm in self.norms.items() if not self.is_left_out(name)]
        if any(norm.isnan() for norm in learning):  # DeepSpeed then leaves the step out, and says so
            return torch.full_like(learning[0], torch.nan)
        told = self.norms[self.told]
        return torch.zeros_like(told) if self.is_left_out(self.told) else told

    def _take(self, number: int) -> None:
        """Of one group, whose gradients are put together by now."""
        name = self.sets[number]
        if self.is_left_out(name):
            return
        if self.limit > 0:  # as torch.nn.utils.clip_grad_norm_ has it
            factor = (self.limit / (self.norms[name] + 1e-6)).clamp(max=1.0)
            self.zero.single_partition_of_fp32_groups[number].grad.mul_(factor)
        self.step(number)
