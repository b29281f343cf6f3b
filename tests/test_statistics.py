"""Intervals and tests against published numbers, scipy, brute force and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from align.forgetting.statistics import (
    Change,
    PerplexityChange,
    Undefined,
    average_forgetting,
    backward_transfer,
    items_to_decide,
    mcnemar_exact,
    mean_change,
    paired_binary,
    paired_perplexity,
    pseudo_item_interval,
    verdict,
    wilson,
)

# true shares of items (gained, lost): strong correlation means few of either
SHARES = [
    (0, 0), (0, 0.005), (0.005, 0.005), (0.01, 0.01), (0.02, 0.02), (0, 0.02), (0, 0.05), (0.02, 0.05), (0.05, 0.1),
    (0.05, 0.2), (0.01, 0.3), (0, 0.5), (0.3, 0.3),
]  # fmt: skip


def outcome(lost: int, gained: int, n: int) -> Change:
    """The change of n items that were all answered as often right as wrong where nothing changed."""
    before = [1] * lost + [0] * gained + [i % 2 for i in range(n - lost - gained)]
    after = [0] * lost + [1] * gained + [i % 2 for i in range(n - lost - gained)]
    return paired_binary(before, after)


def change(delta: float, low: float, high: float, n: int = 100) -> Change:
    return Change(delta, low, high, 0.5, 0, 0, n, 0.1)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "low", "high", "digits"),
    [
        (7, 1, 21, -0.508, -0.013, 3),  # airway reactivity: Fagerland, Lydersen & Laake 2014, table V
        (16, 6, 161, -0.1195, -0.0032, 4),  # consolidation therapy: the R package contingencytables
        (4, 26, 48, 0.2548067, 0.6251933, 7),  # the R package statpsych, ci.prop.ps(.05, 12, 4, 26, 6)
    ],
)
def test_interval_of_published_examples(lost: int, gained: int, n: int, low: float, high: float, digits: int) -> None:
    found = outcome(lost, gained, n)
    assert (round(found.low, digits), round(found.high, digits)) == (low, high)
    assert (found.lost, found.gained, found.n, found.delta) == (lost, gained, n, pytest.approx((gained - lost) / n))


def test_mcnemar_is_the_exact_binomial_test() -> None:
    for lost in range(25):
        for gained in range(25):
            expected = stats.binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
            assert mcnemar_exact(lost, gained) == pytest.approx(expected, rel=1e-9)
    assert outcome(7, 1, 21).p_value == pytest.approx(18 / 256)


def coverage(intervals: np.ndarray, n: int, gained: float, lost: float) -> tuple[float, float]:
    """Exact probability that the interval holds gained - lost, and its mean width; intervals[g, l] = low, high."""
    g, u = np.indices((n + 1, n + 1))
    possible = g + u <= n
    weight = np.zeros((n + 1, n + 1))
    counts = np.stack([g[possible], u[possible], n - g[possible] - u[possible]], axis=-1)
    weight[possible] = stats.multinomial.pmf(counts, n, [gained, lost, 1 - gained - lost])
    low, high = intervals[..., 0], intervals[..., 1]
    inside = (low <= gained - lost + 1e-12) & (high >= gained - lost - 1e-12)
    return float((weight * inside)[possible].sum()), float((weight * (high - low))[possible].sum())


def tabulate(n: int, method: object) -> np.ndarray:
    table = np.full((n + 1, n + 1, 2), np.nan)
    for g in range(n + 1):
        for u in range(n + 1 - g):
            table[g, u] = method(g, u, n)  # type: ignore[operator]
    return table


def ours(gained: int, lost: int, n: int) -> tuple[float, float]:
    return pseudo_item_interval([(n, (gained - lost) / n, (gained + lost) / n)])[:2]


def wald(gained: int, lost: int, n: int) -> tuple[float, float]:
    delta = (gained - lost) / n
    half = 1.959964 * math.sqrt(((gained + lost) / n - delta**2) / n)
    return delta - half, delta + half


def tango(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Tango's (1998) score interval by bisection on its statistic, which falls in the difference d."""

    def statistic(d: float) -> float:
        a, c = 2 * n, -lost * d * (1 - d)
        b = -gained - lost + (2 * n - gained + lost) * d
        share = (math.sqrt(max(b * b - 4 * a * c, 0)) - b) / (2 * a)
        variance = n * (2 * share + d * (1 - d))
        distance = gained - lost - n * d
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0

    def root(low: float, high: float, target: float) -> float:
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if statistic(middle) > target else (low, middle)
        return low

    delta = (gained - lost) / n
    return root(-1, delta, 1.959964), root(delta, 1, -1.959964)


@pytest.mark.parametrize("n", [50, 200])
def test_coverage_of_the_paired_interval(n: int) -> None:
    own, plain = tabulate(n, ours), tabulate(n, wald)
    covered = [coverage(own, n, *shares)[0] for shares in SHARES]
    assert min(covered) > 0.945
    assert min(coverage(plain, n, *shares)[0] for shares in SHARES) < 0.7, "the cases do not tell methods apart"


def test_it_covers_better_than_tangos_and_is_narrower_where_little_changed() -> None:
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)  # Fagerland et al. 2014, table V
    own, score = tabulate(50, ours), tabulate(50, tango)
    results = [(coverage(own, 50, *shares), coverage(score, 50, *shares)) for shares in SHARES]
    assert min(mine[0] for mine, _ in results) > min(theirs[0] for _, theirs in results)
    assert all(mine[1] < theirs[1] for (mine, theirs), shares in zip(results, SHARES, strict=True) if sum(shares) < 0.1)


def test_nothing_changed_is_not_certainty() -> None:
    same = paired_binary([1] * 50, [1] * 50)
    assert (same.delta, same.p_value, same.lost, same.gained) == (0, 1, 0, 0)
    assert -0.06 < same.low < -0.03 and 0.03 < same.high < 0.06
    halves = paired_binary([0.5] * 50, [0.5] * 50)
    assert (halves.low, halves.high, halves.p_value) == pytest.approx((same.low, same.high, 1))
    one = paired_binary([0.9], [0.3])
    assert one.low == -1 and one.high > 0.3 and one.p_value > 0.3


def test_everything_lost_stays_within_minus_one() -> None:
    gone = paired_binary([1] * 50, [0] * 50)
    assert gone.low == -1 and -0.95 < gone.high < -0.85 and gone.p_value == pytest.approx(2 * 0.5**50)
    two = paired_binary([0.9, 0.8], [0.0, 0.5])
    assert (two.low, two.high) == (-1, 1), "Student's t with one degree of freedom reaches far beyond"


def test_fractional_scores_are_a_paired_t_test() -> None:
    generator = np.random.default_rng(3)
    before = generator.uniform(0.3, 1, 40)
    after = np.clip(before - 0.05 + generator.normal(0, 0.1, 40), 0, 1)
    found, expected = paired_binary(before.tolist(), after.tolist()), stats.ttest_rel(after, before)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.p_value) == pytest.approx((interval.low, interval.high, expected.pvalue))
    assert found.lost == int((after < before).sum()) and found.gained == int((after > before).sum())


@pytest.mark.parametrize(("before", "after"), [([], []), ([1], [1, 0])])
def test_other_items_are_refused(before: list[float], after: list[float]) -> None:
    text = f"a paired comparison needs the same items twice, got {len(before)} and {len(after)}"
    with pytest.raises(ValueError, match=f"^{text}$"):
        paired_binary(before, after)


def texts(generator: np.random.Generator, n: int) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    """Texts of very unequal length whose nats per token rise by 0.2 on average, each text by its own amount."""
    tokens = generator.lognormal(4, 0.7, n).astype(int) + 5
    rate = generator.normal(1.0, 0.3, n)
    rise = generator.normal(0.2, 0.2, n)
    before = [(float(t * r), int(t)) for t, r in zip(tokens, rate, strict=True)]
    return before, [(nll + float(t * x), t) for (nll, t), x in zip(before, rise, strict=True)]


def test_perplexity_ratio_is_that_of_the_corpora_and_its_error_the_jackknifes() -> None:
    before, after = texts(np.random.default_rng(5), 30)
    found = paired_perplexity(before, after)

    def perplexity(items: list[tuple[float, int]]) -> float:
        return math.exp(sum(nll for nll, _ in items) / sum(tokens for _, tokens in items))

    assert found.ratio == pytest.approx(perplexity(after) / perplexity(before))
    left_out = [
        math.log(perplexity(after[:i] + after[i + 1 :]) / perplexity(before[:i] + before[i + 1 :])) for i in range(30)
    ]
    half = stats.t.ppf(0.975, 29) * np.sqrt(29 / 30 * np.sum((left_out - np.mean(left_out)) ** 2))
    assert (found.low, found.high) == pytest.approx((found.ratio * math.exp(-half), found.ratio * math.exp(half)))
    t = math.log(found.ratio) / half * stats.t.ppf(0.975, 29)
    assert found.p_value == pytest.approx(2 * stats.t.sf(t, 29))


def test_coverage_of_the_perplexity_interval() -> None:
    generator = np.random.default_rng(11)
    intervals = [paired_perplexity(*texts(generator, 50)) for _ in range(2000)]
    inside = np.mean([found.low <= math.exp(0.2) <= found.high for found in intervals])
    assert 0.93 < inside < 0.97


def test_perplexity_without_numbers() -> None:
    fine, gone = [(10.0, 8), (12.0, 9)], [(10.0, 8), (math.inf, 9)]
    assert paired_perplexity(fine, gone) == PerplexityChange(math.inf, math.inf, math.inf, 0.0, 2)
    assert verdict(paired_perplexity(fine, gone), 1e6) == "FORGOT"
    unknown = paired_perplexity(gone, fine)
    assert math.isnan(unknown.ratio) and verdict(unknown, 1.5) == "UNCLEAR" and items_to_decide(unknown, 1.5) is None
    same = paired_perplexity(fine, fine)
    assert (same.ratio, same.low, same.high, same.p_value) == (1, 1, 1, 1)
    single = paired_perplexity([(10.0, 10)], [(20.0, 10)])
    assert (single.ratio, single.low, single.high) == (pytest.approx(math.e), 0, math.inf)
    for nll in (710.9, 2000.0):  # e^709.9 is just beyond a float
        assert paired_perplexity([(1.0, 1), (1.0, 1)], [(nll, 1), (nll, 1)]).ratio == math.inf


def test_items_that_all_changed_alike_leave_no_doubt() -> None:
    before = [(1.0, 1), (2.0, 2), (4.0, 4)]
    same, twice = paired_perplexity(before, before), paired_perplexity(before, [(2 * nll, n) for nll, n in before])
    assert (same.ratio, same.low, same.high, same.p_value) == (1.0, 1.0, 1.0, 1.0)
    assert (twice.ratio, twice.low, twice.high) == pytest.approx((math.e, math.e, math.e))
    assert twice.p_value == 0.0


def test_mean_of_one_probe_is_that_probe_and_of_many_the_textbook_formula() -> None:
    single = outcome(9, 3, 60)
    mean = mean_change([single])
    assert (mean.delta, mean.low, mean.high) == pytest.approx((single.delta, single.low, single.high))
    probes = [outcome(400, 100, 4000), outcome(900, 900, 5000), outcome(10, 300, 3000)]
    mean = mean_change(probes)
    errors = [
        np.std([-1] * probe.lost + [1] * probe.gained + [0] * (probe.n - probe.lost - probe.gained)) ** 2 / probe.n
        for probe in probes
    ]
    half = 1.959964 * math.sqrt(sum(errors)) / 3
    assert mean.delta == pytest.approx((-300 / 4000 + 0 + 290 / 3000) / 3)
    assert (mean.low, mean.high) == pytest.approx((mean.delta - half, mean.delta + half), abs=1e-4)
    assert (mean.lost, mean.gained, mean.n) == (1310, 1300, 12000)
    assert mean.p_value == pytest.approx(2 * stats.norm.sf(abs(mean.delta) / half * 1.959964), rel=0.01)


@pytest.mark.parametrize("n", [25, 200])
@pytest.mark.parametrize("probes", [3, 10])
@pytest.mark.parametrize(("gained", "lost"), [(0, 0.002), (0, 0.01), (0.01, 0.01), (0, 0.05), (0.05, 0.1), (0, 0.5)])
def test_coverage_of_the_mean(n: int, probes: int, gained: float, lost: float) -> None:
    generator = np.random.default_rng(17)
    draws = generator.multinomial(n, [gained, lost, 1 - gained - lost], size=(1000, probes))
    inside = 0
    for draw in draws:
        low, high, _ = pseudo_item_interval([(n, (g - u) / n, (g + u) / n) for g, u, _ in draw.tolist()])
        inside += low <= gained - lost <= high
    assert inside / 1000 > 0.92


def test_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no changes to average$"):
        mean_change([])


def test_probes_that_did_not_change_leave_the_mean_some_doubt() -> None:
    mean = mean_change([outcome(0, 0, 50)] * 10)
    assert mean.low < 0 < mean.high and mean.p_value == 1 and mean.high < outcome(0, 0, 50).high


@pytest.mark.parametrize(
    ("found", "limit", "expected"),
    [
        (change(-0.3, -0.4, -0.2), 0.1, "FORGOT"),
        (change(-0.2, -0.3, -0.1), 0.1, "UNCLEAR"),  # its upper end is the limit, not below it
        (change(-0.1, -0.2, 0.0), 0.1, "UNCLEAR"),
        (change(-0.05, -0.099, 0.0), 0.1, "OK"),
        (change(0.3, 0.2, 0.4), 0.0, "OK"),
        (change(-1.0, -1.0, -0.9), 1.0, "OK"),  # a limit of 1 can never be broken
        (PerplexityChange(1.6, 1.5, 1.7, 0.0, 9), 1.2, "FORGOT"),
        (PerplexityChange(1.2, 1.1, 1.3, 0.0, 9), 1.2, "UNCLEAR"),
        (PerplexityChange(1.1, 1.0, 1.19, 0.0, 9), 1.2, "OK"),
        (PerplexityChange(0.8, 0.7, 0.9, 0.0, 9), 1.0, "OK"),
    ],
)
def test_verdict(found: Change | PerplexityChange, limit: float, expected: str) -> None:
    assert verdict(found, limit) == expected


def test_items_to_decide_is_millers_example() -> None:
    """Miller 2024, section 5: a variance of 1/9 and an effect of 3 points at 80 % power need 969 questions."""
    assert items_to_decide(outcome(10_000, 10_000, 180_000), 0.03) in (969, 970)


def test_so_many_items_do_decide() -> None:
    """With the number asked for, the verdict is out in about 80 of 100 repetitions; with a quarter of it, far less."""
    lost, gained, limit = 0.12, 0.06, 0.10
    needed = items_to_decide(outcome(12, 6, 100), limit)
    assert needed is not None and 500 < needed < 1200
    generator = np.random.default_rng(23)

    def decided(n: int) -> float:
        draws = generator.multinomial(n, [lost, gained, 1 - lost - gained], size=2000)
        return float(np.mean([ours(int(g), int(u), n)[0] > -limit for u, g, _ in draws]))

    assert 0.77 < decided(needed) < 0.87
    assert decided(needed // 4) < 0.4


def test_items_to_decide_at_the_limit_and_for_perplexity() -> None:
    assert items_to_decide(outcome(20, 10, 100), 0.10) is None
    wide = PerplexityChange(1.1, 1.1 / 1.2, 1.1 * 1.2, 0.2, 40)
    deviation = math.log(1.2) / 1.959964 * math.sqrt(40)
    assert items_to_decide(wide, 1.2) == math.ceil((2.801585 * deviation / math.log(1.2 / 1.1)) ** 2)


ROWS = {
    "base": {"copy": 0.9, "sort": 0.8},
    "sft": {"copy": 0.5, "sort": 0.95},
    "dpo": {"copy": 0.6, "sort": 0.7},
}


def test_an_interval_without_bounds_is_not_narrowed_by_any_number_of_items() -> None:
    for low, high in ((0.0, 2.0), (0.5, math.inf), (0.0, math.inf)):
        assert items_to_decide(PerplexityChange(1.2, low, high, 0.5, 20), 1.5) is None
    assert items_to_decide(PerplexityChange(1.2, 0.5, 2.0, 0.5, 20), 1.5) is not None


def test_backward_transfer_and_average_forgetting_by_hand() -> None:
    assert backward_transfer(ROWS, ["base", "sft"]) == pytest.approx((-0.4 + 0.15) / 2)
    assert backward_transfer(ROWS, ["base", "sft", "dpo"]) == pytest.approx((-0.3 - 0.1) / 2)
    assert average_forgetting(ROWS, ["base", "sft"]) == pytest.approx((0.4 - 0.15) / 2)
    assert average_forgetting(ROWS, ["base", "sft", "dpo"]) == pytest.approx(((0.9 - 0.6) + (0.95 - 0.7)) / 2)


def test_what_has_no_meaning_is_undefined() -> None:
    for measure in (backward_transfer, average_forgetting):
        assert measure(ROWS, ["base"]) == Undefined("nothing was trained before this row")
        assert measure({"base": {}, "sft": {}}, ["base", "sft"]) == Undefined("no skill was measured")


@pytest.mark.parametrize(("right", "n"), [(0, 1), (2, 5), (5, 5), (0, 10), (33, 60), (199, 200), (2, 3)])
def test_the_interval_of_a_proportion_is_scipys(right: int, n: int) -> None:
    expected = stats.binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_items_have_no_proportion() -> None:
    with pytest.raises(ValueError, match="no interval"):
        wilson(0.0, 0)
