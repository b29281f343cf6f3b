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


def average_forgetting(
    scores: Mapping[str, Mapping[str, float]],
    history: Sequence[str],
    chosen_by: Mapping[str, Mapping[str, float]] | None = None,
) -> float | Undefined:
    """F = mean_j (R[i_j][j] - R[T][j]), i_j < T the best row of j (Chaudhry et al. 2018, arXiv:1801.10112); negative
    where all was gain.

    Args:
        scores, history: as of `backward_transfer`.
        chosen_by: the scores that the best rows are chosen by, see `best_rows`.
    """
    why = _undefined(scores, history)
    if why:
        return why
    last = scores[history[-1]]
    best = best_rows(scores if chosen_by is None else chosen_by, history)
    return math.fsum(scores[best[j]][j] - last[j] for j in last) / len(last)


def best_rows(chosen_by: Mapping[str, Mapping[str, float]], history: Sequence[str]) -> dict[str, str]:
    """The row before the last in which each capability was best; the earliest of equal ones.

    Chosen by other items than those that are then compared, it is no better there than it is: the maximum over rows of
    the same items also counts as forgotten what was only luck.
    """
    rows = history[:-1]
    return {j: max(rows, key=lambda row: chosen_by[row][j]) for j in chosen_by[history[0]]}


def _undefined(scores: Mapping[str, Mapping[str, float]], history: Sequence[str]) -> Undefined | None:
    if len(history) < 2:
        return Undefined("nothing was trained before this row")
    if not scores[history[0]]:
        return Undefined("no skill was measured")
    return None
