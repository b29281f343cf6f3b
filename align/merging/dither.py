"""Rounding to fewer bits without losing what is smaller than half a step.

A base in bfloat16 lies on the grid of bfloat16, and an update below half a step is rounded away from every weight,
and with it a good part of what a LoRA learnt. Rounding up or down by chance, with the distance as probability,
keeps the update on average, and the errors of single weights have nothing to do with it (Gupta et al. 2015, arXiv
1502.02551).
"""

from __future__ import annotations

import torch


def dithered(exact: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """A float32 tensor in bfloat16 or float16: each value one of its two neighbours, right on average.

    Values that the precision holds stay; those beyond its range, and those nearest to 0, are rounded as usual.
    """
    near = exact.to(dtype)
    error = exact - near.float()
    if not error.any():
        return near
    outwards = (error > 0) == (near > 0)
    # sign and magnitude: one more in the bits is the next number away from 0
    other = (near.view(torch.int16) + torch.where(outwards, 1, -1).to(torch.int16)).view(dtype)
    share = error.abs() / (other.float() - near.float()).abs()
    chance = torch.rand(exact.shape, generator=generator, device=exact.device)
    moved = (chance < share) & (error != 0) & (near != 0) & near.isfinite() & other.isfinite()
    return torch.where(moved, other, near)
