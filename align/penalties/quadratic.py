"""weight/2 * sum F (w - w0)^2 over what a stage trains: EWC with a Fisher information F, L2-SP with F = 1.

EWC: Kirkpatrick et al. 2017 (arXiv 1612.00796), eq. 3. L2-SP: Li et al. 2018 (arXiv 1802.01483), eq. 2. The gradients
are written out, so that no matrix (out, in) of an adapter is kept from the forward to the backward: one is formed at a
time, with L2-SP none. All is computed in float32 at least, whatever the autocast around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from align.penalties.start import Part, Product, Tensors, Whole


@dataclass(frozen=True)
class Penalty:
    """One penalty on the weights of a stage.

    Attributes:
        name: of the recipe key.
        weight: what the sum is multiplied with, beside 1/2.
        parts: what is trained, with where it started.
        fisher: F by the name of a part, of its shape, float32; None: 1 everywhere.
    """

    name: str
    weight: float
    parts: Sequence[Part]
    fisher: Mapping[str, torch.Tensor] | None = None

    def loss(self, model: nn.Module) -> torch.Tensor:
        """1/2 sum F (w - w0)^2, differentiable."""
        own = dict(model.named_parameters())
        values = [_value(part, self._fisher(part), _chosen(own, part)) for part in self.parts]
        return torch.stack(values).sum()

    @torch.no_grad()
    def slopes(self, part: Part, own: Mapping[str, torch.Tensor]) -> Tensors:
        """The derivatives of the weighted penalty by the tensors of one part, in their order.

        Args:
            own: the model's parameters by name.
        """
        return tuple(self.weight * slope for slope in gradients(part, self._fisher(part), _chosen(own, part)))

    def _fisher(self, part: Part) -> torch.Tensor | None:
        return None if self.fisher is None else self.fisher[part.name]


class _Half(torch.autograd.Function):
    """The value of one part, whose gradients are computed when they are asked for."""

    @staticmethod
    def forward(ctx: Any, part: Part, fisher: torch.Tensor | None, *trained: torch.Tensor) -> torch.Tensor:
        ctx.part, ctx.fisher = part, fisher
        ctx.save_for_backward(*trained)
        return half(part, fisher, trained)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        slopes = gradients(ctx.part, ctx.fisher, ctx.saved_tensors)
        return None, None, *(slope * upstream.to(slope.dtype) for slope in slopes)


def _value(part: Part, fisher: torch.Tensor | None, trained: Tensors) -> torch.Tensor:
    found: torch.Tensor = _Half.apply(part, fisher, *trained)  # type: ignore[no-untyped-call]
    return found


def half(part: Part, fisher: torch.Tensor | None, trained: Tensors) -> torch.Tensor:
    """1/2 sum F (w - w0)^2 of one part, a scalar."""
    with _exactly(trained):
        if isinstance(part, Product) and fisher is None:
            out, into = _factors(part, trained)  # ||U V||^2 = tr((U'U)(V V'))
            return ((out.T @ out) * (into @ into.T)).sum().clamp(min=0) / 2
        moved = _moved(part, trained)
        return (moved.square() if fisher is None else moved.square() * fisher).sum() / 2


def gradients(part: Part, fisher: torch.Tensor | None, trained: Tensors) -> Tensors:
    """The derivatives of `half` by each trained tensor of the part, of its dtype."""
    with _exactly(trained):
        if isinstance(part, Whole):
            moved = _moved(part, trained)
            return ((moved if fisher is None else moved * fisher).to(trained[0].dtype),)
        b, a = (tensor.to(_dtype(tensor)) for tensor in trained)
        if fisher is None:
            out, into = _factors(part, trained)
            by_b, by_a = out @ (into @ a.T), (b.T @ out) @ into
        else:
            slope = fisher * _moved(part, trained)
            by_b, by_a = slope @ a.T, b.T @ slope
        return (part.scaling * by_b).to(trained[0].dtype), (part.scaling * by_a).to(trained[1].dtype)


def _moved(part: Part, trained: Tensors) -> torch.Tensor:
    """w - w0, or s (B A - B0 A0)."""
    if isinstance(part, Whole):
        return trained[0].to(_dtype(trained[0])) - part.start.to(_dtype(trained[0]))
    out, into = _factors(part, trained)
    return out @ into


def _factors(part: Product, trained: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """U (out, k), V (k, in), whose product is s (B A - B0 A0): s ((B - B0) A + B0 (A - A0)), without cancellation."""
    b, a = (tensor.to(_dtype(tensor)) for tensor in trained)
    if part.start is None:
        return part.scaling * b, a
    before_b, before_a = (tensor.to(b.dtype) for tensor in part.start)
    return part.scaling * torch.cat([b - before_b, before_b], 1), torch.cat([a, a - before_a])


def _chosen(own: Mapping[str, torch.Tensor], part: Part) -> Tensors:
    return tuple(own[name] for name in part.parameters)


def _dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _exactly(trained: Tensors) -> torch.autocast:
    """Products are not rounded to 16 bits."""
    return torch.autocast(trained[0].device.type, enabled=False)
