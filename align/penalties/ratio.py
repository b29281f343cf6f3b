"""How strong a penalty on weights is beside the rest of the loss: by the norms of the two gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from align.penalties.quadratic import Penalty


@torch.no_grad()
def ratios(model: nn.Module, penalties: Sequence[Penalty], scale: float = 1.0) -> dict[str, float]:
    """||gradient of the weighted penalty|| / ||gradient of the loss without any of the penalties||, by name.

    Over the weights that the penalties are on, one part after the other. None is given while the rest has no gradient
    there, as in the warm-up of a critic.

    Args:
        model: with the gradients of a whole update in `.grad`, those of the penalties in them.
        penalties: at least one, all on the same parts.
        scale: what these gradients were multiplied by, in mixed precision.
    """
    own = dict(model.named_parameters())
    squares, rest = dict.fromkeys((penalty.name for penalty in penalties), 0.0), 0.0
    for part in penalties[0].parts:
        slopes = {penalty.name: penalty.slopes(part, own) for penalty in penalties}
        for name, found in slopes.items():
            squares[name] += sum(_square(slope) for slope in found)
        for number, name in enumerate(part.parameters):
            gradient = own[name].grad
            if gradient is not None:
                left = gradient.float() / scale
                for found in slopes.values():
                    left -= found[number].float()
                rest += _square(left)
    return {name: (square / rest) ** 0.5 for name, square in squares.items()} if rest > 0 else {}


def _square(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.float())) ** 2
