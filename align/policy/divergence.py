"""How far apart two distributions over the next token are."""

from __future__ import annotations

import torch

AT_A_TIME = 64  # positions in float64, whose distributions may be over hundreds of thousands of tokens


def forward_kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(one || other) in nats at each position, over the whole vocabulary, in float64.

    Args:
        one, other: logits, (positions, vocabulary), on one device.

    Returns:
        (positions,), on the CPU. Rounding may leave a value just below 0.
    """
    found = []
    for a, b in zip(torch.split(one, AT_A_TIME), torch.split(other, AT_A_TIME), strict=True):
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        found.append((p.exp() * (p - q)).sum(-1).cpu())
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)
