"""Intervals of a proportion, of differences and of an estimate with a standard error; all are 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Estimate:
    """What an interval is made of: `centre` +- quantile x `error`.

    Attributes:
        centre: for pseudo-items not quite what was observed; of perplexities the log-ratio.
        error: standard error; 0 leaves no doubt.
        freedom: degrees of freedom of Student's t; None for the normal distribution.
    """

    centre: float
    error: float
    freedom: int | None = None

    def interval(self) -> tuple[float, float]:
        """Low and high."""
        half = self._quantile() * self.error
        return self.centre - half, self.centre + half

    def p_value(self, value: float = 0.0) -> float:
        """Two-sided, against `value`."""
        return min(1.0, 2 * min(self.below(value), self.above(value)))

    def below(self, value: float) -> float:
        """One-sided p-value of the claim that the truth lies below `value`: how often an estimate is this low where the
        truth is `value`."""
        return self._cdf(self.centre - value)

    def above(self, value: float) -> float:
        """The same of the claim that it lies above."""
        return self._cdf(value - self.centre)

    def _quantile(self) -> float:
        if self.freedom is None:
            return Z
        from scipy.special import stdtrit

        return float(stdtrit(self.freedom, (1 + CONFIDENCE) / 2))

    def _cdf(self, distance: float) -> float:
        if not self.error:
            return float(distance >= 0)
        if self.freedom is None:
            return NormalDist().cdf(distance / self.error)
        from scipy.special import stdtr

        return float(stdtr(self.freedom, distance / self.error))


def pseudo_items(samples: Sequence[tuple[int, float, float]]) -> Estimate:
    """The mean over k samples of differences in -1..1, each (n, mean, mean square), with a normal interval.

    Every sample gets 1/k of an item that was lost (-1) and 1/k of one that was gained (+1) before mean m_j and variance
    v_j are taken over its n_j + 2/k items: mean(m_j) +- z sqrt(sum_j v_j / (n_j + 2/k)) / k. With k = 1 this is
    Bonett & Price (2012): p12 = (gained + 1) / (n + 2), p21 = (lost + 1) / (n + 2),
    p12 - p21 +- z sqrt((p12 + p21 - (p12 - p21)^2) / (n + 2)).
    """
    k = len(samples)
    means, variances = [], []
    for n, mean, mean_square in samples:
        size = n + 2 / k
        adjusted = n * mean / size
        means.append(adjusted)
        variances.append(((n * mean_square + 2 / k) / size - adjusted * adjusted) / size)
    return Estimate(math.fsum(means) / k, math.sqrt(math.fsum(variances)) / k)


def pseudo_item_interval(samples: Sequence[tuple[int, float, float]]) -> tuple[float, float, float]:
    """Low and high of `pseudo_items`, within -1..1, and the two-sided p-value against 0."""
    estimate = pseudo_items(samples)
    low, high = estimate.interval()
    return max(-1.0, low), min(1.0, high), estimate.p_value()


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
    low, high = (centre - half) / (1 + square), (centre + half) / (1 + square)
    return 0.0 if share <= 0 else max(0.0, low), 1.0 if share >= 1 else min(1.0, high)  # the ends, free of rounding


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact McNemar test: min(1, 2 P(X <= min(lost, gained))), X ~ Binomial(lost + gained, 1/2)."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))


def exp(value: float) -> float:
    """e^value, inf where that is beyond a float: a diverged model's perplexity is no reason to fall over."""
    return math.exp(value) if value < 709 else math.inf
