"""What changed between two measurements of the same items, how sure that is, and what it says against a limit.

All intervals are 95 % intervals. Two units occur: a difference of mean scores (`Change`) and a ratio of perplexities
(`PerplexityChange`); `verdict` and `items_to_decide` take either with a limit in its own unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

Verdict = Literal["FORGOT", "OK", "UNCLEAR"]

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Change:
    """A change of a mean score in 0..1, over the same items before and after.

    Attributes:
        delta: after - before.
        low, high: 95 % interval of delta, within -1..1.
        p_value: two-sided, against "nothing changed".
        lost, gained: items whose score fell, and rose.
        n: items.
        mean_square: mean of the squared differences per item; n * mean_square of right/wrong items is lost + gained.
    """

    delta: float
    low: float
    high: float
    p_value: float
    lost: int
    gained: int
    n: int
    mean_square: float


@dataclass(frozen=True)
class PerplexityChange:
    """A change of corpus perplexity over the same items.

    Attributes:
        ratio: perplexity after / before: inf where the later model gives no finite perplexity any more, nan where the
            earlier one already gave none.
        low, high: 95 % interval of the ratio.
        p_value: two-sided, against a ratio of 1.
        n: items.
    """

    ratio: float
    low: float
    high: float
    p_value: float
    n: int


@dataclass(frozen=True)
class Undefined:
    """A measure that has no value here, and why."""

    why: str


def paired_binary(before: Sequence[float], after: Sequence[float]) -> Change:
    """Compare the scores of the same items, in the same order, each in 0..1.

    Right/wrong items (all 0 or 1): the interval of Bonett & Price (2012, doi:10.3102/1076998611411915), see
    `pseudo_item_interval`, and the exact McNemar test, min(1, 2 P(X <= min(lost, gained))) with X binomial over
    lost + gained trials at 1/2. Bonett & Price's is the closed form that Fagerland, Lydersen & Laake (2014,
    doi:10.1002/sim.6148) recommend; over the cases of tests/test_statistics.py its worst coverage is above that of
    Tango's (1998) score interval, and it is narrower where few items changed.

    Fractional scores: mean difference +- t(n-1) s / sqrt(n) and the paired t-test. Where all differences are equal the
    t interval has no width and would claim certainty: the pseudo-item interval takes its place.

    Raises:
        ValueError: no items, or not the same number before and after.
    """
    differences = _differences(before, after)
    n = len(differences)
    lost = sum(d < 0 for d in differences)
    gained = sum(d > 0 for d in differences)
    delta = math.fsum(differences) / n
    mean_square = math.fsum(d * d for d in differences) / n
    deviation = math.sqrt(math.fsum((d - delta) ** 2 for d in differences) / (n - 1)) if n > 1 else 0.0
    if all(score in (0, 1) for score in (*before, *after)):
        low, high, _ = pseudo_item_interval([(n, delta, mean_square)])
        p_value = mcnemar_exact(lost, gained)
    elif deviation < 1e-12:
        low, high, p_value = pseudo_item_interval([(n, delta, mean_square)])
    else:
        low, high, p_value = _t_interval(delta, deviation / math.sqrt(n), n - 1)
    return Change(delta, max(-1.0, low), min(1.0, high), p_value, lost, gained, n, mean_square)


def paired_perplexity(before: Sequence[tuple[float, int]], after: Sequence[tuple[float, int]]) -> PerplexityChange:
    """Compare corpus perplexities over the same items, each as (negative log-likelihood in nats, tokens).

    The log-ratio L = sum(nll after) / sum(tokens after) - sum(nll before) / sum(tokens before) is a ratio estimator
    over items, since the tokens of one text are not independent. Its variance is the jackknife's, (n-1)/n sum (L_i -
    mean L_i)^2 with L_i leaving item i out (Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 11); the
    interval is exp(L +- t(n-1) se). A single item gives an estimate, but no interval: 0 to inf.

    Raises:
        ValueError: no items, or not the same number before and after.
    """
    n = _same_length(before, after)
    b_nll, b_tokens = math.fsum(nll for nll, _ in before), sum(tokens for _, tokens in before)
    a_nll, a_tokens = math.fsum(nll for nll, _ in after), sum(tokens for _, tokens in after)
    if not math.isfinite(b_nll):
        return PerplexityChange(math.nan, 0.0, math.inf, 1.0, n)
    if not math.isfinite(a_nll):
        return PerplexityChange(math.inf, math.inf, math.inf, 0.0, n)
    log_ratio = a_nll / a_tokens - b_nll / b_tokens
    if n == 1:
        return PerplexityChange(exp(log_ratio), 0.0, math.inf, 1.0, n)
    without = [
        (a_nll - a[0]) / (a_tokens - a[1]) - (b_nll - b[0]) / (b_tokens - b[1])
        for b, a in zip(before, after, strict=True)
    ]
    centre = math.fsum(without) / n
    error = math.sqrt((n - 1) / n * math.fsum((value - centre) ** 2 for value in without))
    low, high, p_value = _t_interval(log_ratio, error, n - 1)
    return PerplexityChange(exp(log_ratio), exp(low), exp(high), p_value, n)


def mean_change(changes: Sequence[Change]) -> Change:
    """The unweighted mean of the deltas of several probes whose items are independent of each other.

    The variance is sum_j var_j / k^2 over k probes, var_j from the differences per item of probe j. So that probes in
    which nothing changed do not claim certainty, the two pseudo-items of `pseudo_item_interval` are shared among the
    probes, 1/k of each to every one, as Price & Bonett (2004, doi:10.1016/S0167-9473(03)00007-0) do for linear
    functions of proportions; of one probe of right/wrong items this is that probe's own interval. The p-value is the
    two-sided normal one that belongs to the interval. `lost`, `gained` and `n` are sums over the probes.

    Raises:
        ValueError: no changes.
    """
    if not changes:
        raise ValueError("no changes to average")
    k = len(changes)
    low, high, p_value = pseudo_item_interval([(change.n, change.delta, change.mean_square) for change in changes])
    return Change(
        delta=math.fsum(change.delta for change in changes) / k,
        low=low,
        high=high,
        p_value=p_value,
        lost=sum(change.lost for change in changes),
        gained=sum(change.gained for change in changes),
        n=sum(change.n for change in changes),
        mean_square=math.fsum(change.mean_square for change in changes) / k,
    )


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


def verdict(change: Change | PerplexityChange, limit: float) -> Verdict:
    """FORGOT or OK where the whole interval stands on one side of the limit, UNCLEAR where the limit is inside.

    Args:
        limit: the greatest drop allowed, 0..1; of perplexity the greatest ratio after/before allowed. An interval that
            ends on the limit has not crossed it.
    """
    if isinstance(change, PerplexityChange):
        best, worst, allowed = -change.low, -change.high, -limit
    else:
        best, worst, allowed = change.high, change.low, -limit
    if best < allowed:
        return "FORGOT"
    return "OK" if worst >= allowed else "UNCLEAR"


def items_to_decide(change: Change | PerplexityChange, limit: float, power: float = 0.8) -> int | None:
    """How many items would settle the verdict with this power, if the change stays what it now looks like.

    n' = (z(0.975) + z(power))^2 s^2 / (delta + limit)^2 (the sample size of Miller 2024, arXiv:2411.00640, with the
    distance to the limit as the effect), s being the deviation of one item's difference as the interval shows it: half
    its width times sqrt(n) / z(0.975). Perplexities are compared as logarithms. For a mean over probes it is the items
    of all together.

    Returns: a number of items; None where the estimate stands on the limit, so that no number would do.
    """
    if isinstance(change, PerplexityChange):
        if not (change.low > 0 and change.high < math.inf and limit > 0):
            return None
        distance, width = math.log(change.ratio / limit), math.log(change.high / change.low)
    else:
        distance, width = change.delta + limit, change.high - change.low
    if abs(distance) < 1e-9:
        return None
    deviation = width / 2 / Z * math.sqrt(change.n)
    return math.ceil(((Z + NormalDist().inv_cdf(power)) * deviation / distance) ** 2)


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


def exp(value: float) -> float:
    """e^value, inf where that is beyond a float: a diverged model's perplexity is no reason to fall over."""
    return math.exp(value) if value < 709 else math.inf


def _undefined(scores: Mapping[str, Mapping[str, float]], history: Sequence[str]) -> Undefined | None:
    if len(history) < 2:
        return Undefined("nothing was trained before this row")
    if not scores[history[0]]:
        return Undefined("no skill was measured")
    return None


def _t_interval(estimate: float, error: float, freedom: int) -> tuple[float, float, float]:
    """Interval and two-sided p-value against 0 by Student's t; an error of 0 leaves no doubt."""
    from scipy.special import stdtr, stdtrit

    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    p_value = 2 * float(stdtr(freedom, -abs(estimate) / error)) if error else float(estimate == 0)
    return estimate - half, estimate + half, p_value


def _differences(before: Sequence[float], after: Sequence[float]) -> list[float]:
    _same_length(before, after)
    return [late - early for early, late in zip(before, after, strict=True)]


def _same_length(before: Sequence[object], after: Sequence[object]) -> int:
    if not before or len(before) != len(after):
        raise ValueError(f"a paired comparison needs the same items twice, got {len(before)} and {len(after)}")
    return len(before)
