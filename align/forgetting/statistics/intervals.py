"""Intervals of a proportion, of differences and of an estimate with a standard error; all are 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def pseudo_item_interval(samples: Sequence[tuple[int, float, float]]) -> tuple[float, float, float]:
    """Interval and p-value of the mean over k samples of differences in -1..1, each (n, mean, mean square).

    Every sample gets 1/k of an item that was lost (-1) and 1/k of one that was gained (+1) before mean m_j and variance
    v_j are taken over its n_j + 2/k items: mean(m_j) +- z sqrt(sum_j v_j / (n_j + 2/k)) / k. With k = 1 this is
    Bonett & Price (2012): p12 = (gained + 1) / (n + 2), p21 = (lost + 1) / (n + 2),
    p12 - p21 +- z sqrt((p12 + p21 - (p12 - p21)^2) / (n + 2)).

    Returns: low, high (within -1..1), and the two-sided normal p-value against 0.
    """
    k = len(samples)
    means, variances = [], []
    for n, mean, mean_square in samples:
        size = n + 2 / k
        adjusted = n * mean / size
        means.append(adjusted)
        variances.append(((n * mean_square + 2 / k) / size - adjusted * adjusted) / size)
    centre = math.fsum(means) / k
    error = math.sqrt(math.fsum(variances)) / k
    p_value = 2 * NormalDist().cdf(-abs(centre) / error)
    return max(-1.0, centre - Z * error), min(1.0, centre + Z * error), p_value


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion that was seen in n independent items (Wilson 1927, doi:10.2307/2276774).

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n): within 0..1, and wide where n is small or all
    items agree.

    Raises:
        ValueError: no items.
    """
    if n < 1:
        raise ValueError("a proportion of no items has no interval")
    square = Z * Z / n
    centre = share + square / 2
    half = Z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return max(0.0, (centre - half) / (1 + square)), min(1.0, (centre + half) / (1 + square))


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact McNemar test: min(1, 2 P(X <= min(lost, gained))), X ~ Binomial(lost + gained, 1/2)."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))


def t_interval(estimate: float, error: float, freedom: int) -> tuple[float, float, float]:
    """Interval and two-sided p-value against 0 by Student's t; an error of 0 leaves no doubt."""
    from scipy.special import stdtr, stdtrit

    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    p_value = 2 * float(stdtr(freedom, -abs(estimate) / error)) if error else float(estimate == 0)
    return estimate - half, estimate + half, p_value


def exp(value: float) -> float:
    """e^value, inf where that is beyond a float: a diverged model's perplexity is no reason to fall over."""
    return math.exp(value) if value < 709 else math.inf
