"""Figures over the rows of a matrix: what later training did to the skills of the base, and to the best of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Undefined:
    """A measure that has no value here, and why."""

    why: str


def backward_transfer(scores: Mapping[str, Mapping[str, float]], history: Sequence[str]) -> float | Undefined:
    """BWT = mean_j (R[T][j] - R[j][j]) (Lopez-Paz & Ranzato 2017, arXiv:1706.08840).

    Args:
        scores: R: stage -> capability -> score, higher is better; all are the base's own, so that R[j][j] is its row.
        history: the rows from "base" to T, in the order of training.
    """
    why = _undefined(scores, history)
    if why:
        return why
    first, last = scores[history[0]], scores[history[-1]]
    return math.fsum(last[j] - first[j] for j in first) / len(first)


def average_forgetting(scores: Mapping[str, Mapping[str, float]], history: Sequence[str]) -> float | Undefined:
    """F = mean_j (max_{i<T} R[i][j] - R[T][j]) (Chaudhry et al. 2018, arXiv:1801.10112); negative where all was gain.

    Args: as of `backward_transfer`.
    """
    why = _undefined(scores, history)
    if why:
        return why
    last = scores[history[-1]]
    return math.fsum(max(scores[i][j] for i in history[:-1]) - last[j] for j in last) / len(last)


def _undefined(scores: Mapping[str, Mapping[str, float]], history: Sequence[str]) -> Undefined | None:
    if len(history) < 2:
        return Undefined("nothing was trained before this row")
    if not scores[history[0]]:
        return Undefined("no skill was measured")
    return None
