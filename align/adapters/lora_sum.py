"""Weighted sums of LoRA adapters: the factors B and A of each module, joined, and truncated to a rank.

With A_i (r_i, in) and B_i (out, r_i), stacking A_i and placing w_i s_i B_i side by side is sum_i w_i s_i B_i A_i
exactly, of rank sum_i r_i (`cat` of PEFT's add_weighted_adapter).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import AuxiliaryTrainingWrapper

from align.adapters.placement import Member
from align.adapters.settings import no_factors
from align.errors import AlignError

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]  # of each module by name: s B (out, r) and A (r, in)


@dataclass(frozen=True)
class Combination:
    """What `combine` made.

    Attributes:
        rank: the largest rank of a module in it.
        error: ||kept - exact||_F / ||exact||_F over all modules together; 0 without `rank`.
    """

    rank: int
    error: float


def factors(name: str, member: Member) -> Factors:
    """s B and A of each module that a plain LoRA adapter changes.

    Args:
        name: as a refusal shall call it.

    Raises:
        AlignError: it is no plain LoRA.
    """
    tops, config, called = [place.top for place in member.places], member.config, member.called
    reason = no_factors(
        member.method,
        variant=getattr(config, "use_dora", False) or any(getattr(top, "lora_variant", None) for top in tops),
        whole=any(isinstance(top, AuxiliaryTrainingWrapper) for top in tops),
        experts=bool(getattr(config, "target_parameters", None)),
        embeddings=any(called not in getattr(top, "lora_A", [called]) for top in tops),
        bias=getattr(config, "lora_bias", False),
    )
    if reason:
        raise AlignError(f"'{name}' cannot be combined: {reason}", "combine plain LoRA adapters, or stack by switch()")
    return {
        place.name: (place.top.scaling[called] * place.top.lora_B[called].weight, place.top.lora_A[called].weight)
        for place in member.places
    }


def combine(terms: Sequence[tuple[float, Factors]], rank: int | None) -> tuple[Factors, Combination]:
    """The factors of sum_i w_i s_i B_i A_i.

    Args:
        terms: w_i and the factors of each adapter.
        rank: keep only so many singular values of each module's sum: the best approximation of that rank (Eckart and
            Young 1936), from the SVD of the small core of two QR decompositions.
    """
    pairs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for weight, each in terms:
        for module, (b, a) in each.items():
            pairs.setdefault(module, []).append((weight * b, a))
    joined = {
        module: (torch.cat([b for b, _ in all], 1), torch.cat([a for _, a in all])) for module, all in pairs.items()
    }
    error = 0.0
    if rank is not None:
        joined, error = truncated(joined, rank)
    return joined, Combination(max(a.shape[0] for _, a in joined.values()), error)


def truncated(whole: Factors, rank: int) -> tuple[Factors, float]:
    """The best approximation of each product B A with at most `rank` columns, and the relative error of all."""
    found: Factors = {}
    lost = total = 0.0
    for module, (b, a) in whole.items():
        qb, rb = torch.linalg.qr(b.double())
        qa, ra = torch.linalg.qr(a.double().T)
        u, s, vh = torch.linalg.svd(rb @ ra.T, full_matrices=False)
        kept, root = min(rank, len(s)), s.sqrt()
        found[module] = ((qb @ u[:, :kept]) * root[:kept], root[:kept, None] * (vh[:kept] @ qa.T))
        lost, total = lost + float((s[kept:] ** 2).sum()), total + float((s**2).sum())
    return found, math.sqrt(lost / total) if total else 0.0


def config_of(found: Factors, **settings: Any) -> LoraConfig:
    """PEFT's settings of a LoRA adapter with these factors, whose scale alpha / r is 1 in every module."""
    ranks = {module: a.shape[0] for module, (_, a) in found.items()}
    most = max(ranks.values())
    others = {module: each for module, each in ranks.items() if each != most}
    return LoraConfig(
        task_type="CAUSAL_LM", r=most, lora_alpha=most, target_modules=list(ranks),
        rank_pattern=others, alpha_pattern=dict(others), **settings,
    )  # fmt: skip


def fill(member: Member, found: Factors) -> None:
    """Write factors into an adapter that was made with `config_of` them."""
    for place in member.places:
        b, a = found[place.name]
        place.top.lora_B[member.called].weight.copy_(b)
        place.top.lora_A[member.called].weight.copy_(a)
