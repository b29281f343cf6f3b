"""How often the 95 % intervals hold the truth, and how often a family of ten probes is wrongly called forgotten.

    python benchmarks/coverage.py            # the tables of docs/benchmarks.md; a CPU minute

Of right/wrong items both are computed exactly: the counts of lost and gained items are multinomial, so the chance of
every outcome is known. Fractional scores and perplexities are simulated. The probes of a family are independent of each
other and every one of them drops by exactly its limit; Holm's method holds for dependent ones all the more.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from align.forgetting.statistics import FAMILY_ERROR, Change, paired_binary, paired_perplexity, pseudo_items
from align.forgetting.statistics.family import p_beyond

PROBES = 10
ACCURACIES = (0.5, 0.7, 0.9, 0.98)
DROPS = (0.0, 0.02, 0.05, 0.1, 0.3)
OVERLAPS = (1.0, 0.9, 0.75, 0.5, 0.0)  # 1: nothing is gained; 0: right and wrong change at random
GAINED = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3)
LIMITS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
ENOUGH = 20  # items expected to change, from which on the normal approximation is within 93 to 97 %

Array = np.ndarray


def shares(accuracies: Sequence[float] = ACCURACIES) -> Iterator[tuple[float, float, float, float]]:
    """Accuracy before, drop, and the shares of items gained and lost, from how much right answers overlap."""
    for before in accuracies:
        for drop in DROPS:
            after = before - drop
            for overlap in OVERLAPS if after > 0 else ():
                both = overlap * min(before, after) + (1 - overlap) * before * after
                yield before, drop, after - both, before - both


@lru_cache
def outcomes(n: int) -> tuple[Array, Array]:
    """Every possible number of gained and of lost items."""
    gained, lost = np.indices((n + 1, n + 1))
    possible = gained + lost <= n
    return gained[possible], lost[possible]


@lru_cache
def intervals(n: int) -> tuple[Array, Array]:
    """Low and high of each outcome."""
    found = [
        pseudo_items([(n, (g - u) / n, (g + u) / n)]).interval()
        for g, u in zip(*map(np.ndarray.tolist, outcomes(n)), strict=True)
    ]
    low, high = np.array(found).T
    return low, high


@lru_cache
def p_values(n: int, limit: float) -> Array:
    """Of each outcome, against the limit."""
    return np.array([p_beyond(_change(n, int(g), int(u)), limit) for g, u in zip(*outcomes(n), strict=True)])


def _change(n: int, gained: int, lost: int) -> Change:
    estimate = pseudo_items([(n, (gained - lost) / n, (gained + lost) / n)])
    return Change((gained - lost) / n, 0.0, 0.0, 1.0, lost, gained, n, (gained + lost) / n, estimate)


def chances(n: int, gained: float, lost: float) -> Array:
    """Of each outcome, where these shares of all items there are change."""
    from scipy import stats

    g, u = outcomes(n)
    found: Array = stats.multinomial.pmf(np.stack([g, u, n - g - u], -1), n, [gained, lost, max(0, 1 - gained - lost)])
    return found


def coverage(n: int, gained: float, lost: float) -> float:
    """Exact chance that the interval holds the true change."""
    low, high = intervals(n)
    inside = (low <= gained - lost + 1e-12) & (high >= gained - lost - 1e-12)
    return float(chances(n, gained, lost)[inside].sum())


def family_error(n: int, limit: float, gained: float, probes: int = PROBES) -> float:
    """Exact chance that Holm's method calls any of the probes forgotten, each of which drops by exactly the limit.

    It calls one where the smallest p-value is below error / probes; what it goes on to call after that changes nothing.
    """
    one = chances(n, gained, gained + limit)[p_values(n, limit) < FAMILY_ERROR / probes].sum()
    return float(1 - (1 - one) ** probes)


def share_scores(generator: np.random.Generator, shape: tuple[int, int], kind: str) -> tuple[Array, float]:
    """Changes of fractional scores, and their true mean."""
    if kind == "few fall, by any amount":
        return -np.where(generator.random(shape) < 0.2, generator.random(shape), 0.0), -0.1
    if kind == "most fall by a little, a few rise by much":
        rise = np.where(generator.random(shape) < 0.05, generator.random(shape), -0.12 * generator.random(shape))
        return rise, 0.05 / 2 - 0.95 * 0.06
    return np.clip(generator.normal(-0.1, 0.2, shape), -1, 0.8), -0.1


def simulated(n: int, kind: str, times: int = 2000) -> tuple[float, float]:
    """Coverage of fractional scores, and family error from how often one p-value is below a tenth of 5 %."""
    generator = np.random.default_rng(5)
    differences, mean = share_scores(generator, (times, n), kind)
    inside = wrong = 0
    for row in differences:
        before = np.where(row < 0, np.maximum(-row, 0.2), 0.1)
        found = paired_binary(before.tolist(), (before + row).tolist())
        inside += found.low <= mean <= found.high
        wrong += p_beyond(found, -mean) < FAMILY_ERROR / PROBES
    return inside / times, 1 - (1 - wrong / times) ** PROBES


def texts(generator: np.random.Generator, n: int) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    """Texts of very unequal length whose nats per token rise by 0.2 on average, each text by its own amount."""
    tokens = generator.lognormal(4, 0.7, n).astype(int) + 5
    before = tokens * generator.normal(1.0, 0.3, n)
    after = before + tokens * generator.normal(0.2, 0.2, n)
    return _texts(before, tokens), _texts(after, tokens)


def _texts(nats: Array, tokens: Array) -> list[tuple[float, int]]:
    return list(zip(nats.tolist(), tokens.tolist(), strict=True))


def simulated_texts(n: int, times: int = 2000) -> tuple[float, float]:
    """The same of perplexities."""
    generator, ratio = np.random.default_rng(7), math.exp(0.2)
    found = [paired_perplexity(*texts(generator, n)) for _ in range(times)]
    inside = sum(one.low <= ratio <= one.high for one in found) / times
    wrong = sum(p_beyond(one, ratio) < FAMILY_ERROR / PROBES for one in found) / times
    return inside, 1 - (1 - wrong) ** PROBES


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1%} to {max(values):.1%}" if values else "none"


def _coverages() -> None:
    print("| items of a probe | cases | items that change | coverage, lowest to highest |\n|---|---|---|---|")
    for n in (50, 100, 200, 400):
        found = {(g, u): coverage(n, g, u) for _, _, g, u in shares()}
        bounds: list[tuple[str, Callable[[float], bool]]] = [
            ("under 5", lambda changed: changed < 5),
            (f"5 to {ENOUGH}", lambda changed: 5 <= changed < ENOUGH),
            (f"{ENOUGH} or more", lambda changed: changed >= ENOUGH),
        ]
        for title, holds in bounds:
            of_these = [value for (g, u), value in found.items() if holds(round(n * (g + u), 9))]
            print(f"| {n} | {len(of_these)} | {title} | {_range(of_these)} |")


def _families() -> None:
    print("\n| items of a probe | " + " | ".join(f"limit {limit:g}" for limit in LIMITS) + " |")
    print("|---|" + "---|" * len(LIMITS))
    for n in (50, 100, 200):
        found = [[family_error(n, limit, gained) for gained in GAINED if 2 * gained + limit <= 1] for limit in LIMITS]
        print(f"| {n} | " + " | ".join(f"{max(row):.1%}" for row in found) + " |")


def _simulations() -> None:
    kinds = ("normal", "few fall, by any amount", "most fall by a little, a few rise by much")
    print("\n| | items of a probe | coverage | a family is wrong |\n|---|---|---|---|")
    for n in (50, 100, 200):
        for kind in kinds:
            covered, wrong = simulated(n, kind, 10_000)
            print(f"| scores, {kind} | {n} | {covered:.1%} | {wrong:.1%} |")
        covered, wrong = simulated_texts(n, 10_000)
        print(f"| perplexity | {n} | {covered:.1%} | {wrong:.1%} |")


if __name__ == "__main__":
    _coverages()
    _families()
    _simulations()
