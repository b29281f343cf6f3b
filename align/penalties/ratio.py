"""How strong a penalty on weights is beside the rest of the loss: by the norms of the two gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from align.penalties.quadratic import Penalty


@torch.no_grad()
def ratios(model: nn.Module, penalties: Sequence[Penalty], scale: float = 1.0) -> dict[str, float]:
    """||gradient of the weighted penalty|| / ||gradient of the loss without any of the penalties||, by name.

    Over the weights that a penalty is on. None is given while the rest has no gradient there, as in the warm-up of a
    critic.

    Args:
        model: with the gradients of a whole update in `.grad`, those of the penalties in them.
        scale: what these gradients were multiplied by, in mixed precision.
    """
    own = dict(model.named_parameters())
    slopes = {penalty.name: penalty.gradients(model) for penalty in penalties}
    rest = torch.zeros(())
    for name in dict.fromkeys(name for found in slopes.values() for name in found):
        gradient = own[name].grad
        if gradient is not None:
            added = [found[name] for found in slopes.values() if name in found]
            rest = rest + (gradient.float() / scale - sum(one.float() for one in added)).square().sum().cpu()
    norm = float(rest.sqrt())
    norms = {name: _norm(list(found.values())) for name, found in slopes.items()}
    return {name: value / norm for name, value in norms.items()} if norm > 0 else {}


def _norm(gradients: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([torch.linalg.vector_norm(one.float()).cpu() for one in gradients]).norm())
