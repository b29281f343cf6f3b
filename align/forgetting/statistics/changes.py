"""What changed between two measurements of the same items, and how sure that is.

Two units occur: a difference of mean scores (`Change`) and a ratio of perplexities (`PerplexityChange`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from align.forgetting.statistics.intervals import Estimate, exp, mcnemar_exact, pseudo_items


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
        estimate: of delta, which the interval was made of.
    """

    delta: float
    low: float
    high: float
    p_value: float
    lost: int
    gained: int
    n: int
    mean_square: float
    estimate: Estimate | None = None


@dataclass(frozen=True)
class PerplexityChange:
    """A change of corpus perplexity over the same items.

    Attributes:
        ratio: perplexity after / before: inf where the later model gives no finite perplexity any more, nan where the
            earlier one already gave none.
        low, high: 95 % interval of the ratio.
        p_value: two-sided, against a ratio of 1.
        n: items.
        estimate: of the log-ratio, which the interval was made of; None where there is none.
    """

    ratio: float
    low: float
    high: float
    p_value: float
    n: int
    estimate: Estimate | None = None


def paired_binary(before: Sequence[float], after: Sequence[float]) -> Change:
    """Compare the scores of the same items, in the same order, each in 0..1.

    Right/wrong items (all 0 or 1): the interval of Bonett & Price (2012, doi:10.3102/1076998611411915), see
    `pseudo_items`, and the exact McNemar test, min(1, 2 P(X <= min(lost, gained))) with X binomial over
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
    right_or_wrong = all(score in (0, 1) for score in (*before, *after))
    if right_or_wrong or deviation < 1e-12:
        estimate = pseudo_items([(n, delta, mean_square)])
    else:
        estimate = Estimate(delta, deviation / math.sqrt(n), n - 1)
    low, high = estimate.interval()
    p_value = mcnemar_exact(lost, gained) if right_or_wrong else estimate.p_value()
    return Change(delta, max(-1.0, low), min(1.0, high), p_value, lost, gained, n, mean_square, estimate)


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
    estimate = Estimate(log_ratio, error, n - 1)
    low, high = estimate.interval()
    return PerplexityChange(exp(log_ratio), exp(low), exp(high), estimate.p_value(), n, estimate)


def mean_change(changes: Sequence[Change]) -> Change:
    """The unweighted mean of the deltas of several probes whose items are independent of each other.

    The variance is sum_j var_j / k^2 over k probes, var_j from the differences per item of probe j. So that probes in
    which nothing changed do not claim certainty, the two pseudo-items of `pseudo_items` are shared among the
    probes, 1/k of each to every one, as Price & Bonett (2004, doi:10.1016/S0167-9473(03)00007-0) do for linear
    functions of proportions; of one probe of right/wrong items this is that probe's own interval. The p-value is the
    two-sided normal one that belongs to the interval. `lost`, `gained` and `n` are sums over the probes.

    Raises:
        ValueError: no changes.
    """
    if not changes:
        raise ValueError("no changes to average")
    k = len(changes)
    estimate = pseudo_items([(change.n, change.delta, change.mean_square) for change in changes])
    low, high = estimate.interval()
    return Change(
        delta=math.fsum(change.delta for change in changes) / k,
        low=max(-1.0, low),
        high=min(1.0, high),
        p_value=estimate.p_value(),
        lost=sum(change.lost for change in changes),
        gained=sum(change.gained for change in changes),
        n=sum(change.n for change in changes),
        mean_square=math.fsum(change.mean_square for change in changes) / k,
        estimate=estimate,
    )


def _differences(before: Sequence[float], after: Sequence[float]) -> list[float]:
    _same_length(before, after)
    return [late - early for early, late in zip(before, after, strict=True)]


def _same_length(before: Sequence[object], after: Sequence[object]) -> int:
    if not before or len(before) != len(after):
        raise ValueError(f"a paired comparison needs the same items twice, got {len(before)} and {len(after)}")
    return len(before)
