"""The loss of DPO that holds answers against each other as distributions: its value on held-out pairs.

Alignment via optimal transport (Melnyk et al. 2024, arXiv 2406.05882) sorts the pairs of a batch before it compares
them, so that it is no mean over pairs: on held-out rows it is that of all of them, sorted once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object

LOSSES = ("aot", "aot_unpaired")


def loss(kind: str, log_probs: torch.Tensor, beta: float, label_smoothing: float) -> float:
    """TRL's loss `kind` over all given pairs.

    Args:
        log_probs: (4, pairs): of the chosen and the rejected answers under the policy, then under the reference.
    """
    chosen, rejected, ref_chosen, ref_rejected = log_probs
    if kind == "aot":
        upper, lower = chosen - rejected, ref_chosen - ref_rejected
    else:
        upper, lower = chosen - ref_chosen, rejected - ref_rejected
    gap = beta * (upper.sort().values - lower.sort().values)
    each = -F.logsigmoid(gap) * (1 - label_smoothing) - F.logsigmoid(-gap) * label_smoothing
    return float(each.mean())


def of_all_processes(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """(4, pairs) of all batches and processes, whatever each of them has."""
    own = [part.tolist() for part in parts]
    everything = [torch.tensor(part, dtype=torch.float64) for part in gather_object(own)]
    return torch.cat(everything, dim=1)
