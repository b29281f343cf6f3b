"""What the intervals and the statement over all probes claim, held against exact probabilities and simulation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is no part of the package

from align.forgetting.statistics import FAMILY_ERROR, holm
from benchmarks import coverage
from benchmarks.coverage import ENOUGH, GAINED, LIMITS, PROBES


def covered(n: int) -> dict[tuple[float, float, float, float], float]:
    """Exact coverage by accuracy before, drop, and shares gained and lost."""
    return {case: coverage.coverage(n, *case[2:]) for case in coverage.shares()}


def test_of_200_items_the_intervals_cover_93_to_97_percent_where_20_or_more_change() -> None:
    found = covered(200)
    enough = {case: value for case, value in found.items() if 200 * (case[2] + case[3]) >= ENOUGH}
    assert len(enough) >= 55, "the grid has hardly a case that matters"
    assert all(0.93 <= value <= 0.97 for value in enough.values())


def test_where_few_change_they_cover_more_never_less() -> None:
    for n in (100, 200):
        few = [value for case, value in covered(n).items() if n * (case[2] + case[3]) < ENOUGH]
        assert min(few) >= 0.93 and max(few) > 0.999


def test_no_interval_could_cover_93_to_97_percent_where_one_item_in_200_is_lost() -> None:
    """With nothing gained and one item expected to be lost, an interval holds the truth for some run of counts of lost
    items, from a to b; none of these has such a probability. So 97 % is exceeded by whatever keeps to 93 %."""
    chances = stats.binom.pmf(np.arange(20), 200, 1 / 200)
    runs = [float(chances[a : b + 1].sum()) for a in range(20) for b in range(a, 20)]
    assert not [value for value in runs if 0.93 <= value <= 0.97]
    assert min(value for value in runs if value > 0.93) == pytest.approx(0.981, abs=0.001)


@pytest.mark.parametrize("n", [100, 200])
def test_a_family_of_ten_at_its_limits_is_wrong_at_most_one_time_in_twenty(n: int) -> None:
    errors = [coverage.family_error(n, limit, gained) for limit in (0.0, 0.1) for gained in GAINED]
    assert max(errors) <= FAMILY_ERROR
    assert max(errors) > 0.02, "nothing would ever be called forgotten"


def test_holm_over_simulated_families_of_which_half_forgot() -> None:
    """Five probes drop by exactly the limit, five by far more: these are found, and hardly ever one of the others."""
    n, limit, gained, times = 100, 0.1, 0.05, 2000
    generator = np.random.default_rng(3)
    g, u = coverage.outcomes(n)
    looked_up = np.full((n + 1, n + 1), np.nan)
    looked_up[g, u] = coverage.p_values(n, limit)
    at_limit = generator.multinomial(n, [gained, gained + limit, 1 - 2 * gained - limit], size=(times, 5))
    beyond = generator.multinomial(n, [0.02, 0.5, 0.48], size=(times, 5))
    wrong = found = single = 0
    for here, gone in zip(at_limit, beyond, strict=True):
        p = {f"kept {i}": looked_up[a, b] for i, (a, b, _) in enumerate(here)}
        p |= {f"forgot {i}": looked_up[a, b] for i, (a, b, _) in enumerate(gone)}
        surely = holm(p)
        wrong += any(name.startswith("kept") for name in surely)
        found += sum(name.startswith("forgot") for name in surely)
        single += any(value < 0.05 for name, value in p.items() if name.startswith("kept"))
    assert wrong / times <= FAMILY_ERROR
    assert single / times > FAMILY_ERROR, "verdicts one by one are wrong more often, which is why there is a family"
    assert found / times > 4.9


def test_scores_and_perplexities_of_a_family() -> None:
    for kind in ("normal", "most fall by a little, a few rise by much"):
        _, wrong = coverage.simulated(200, kind, 1000)
        assert wrong <= FAMILY_ERROR
    inside, _ = coverage.simulated_texts(50, 500)
    assert 0.91 < inside < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 100, 200, 400])
def test_every_case(n: int) -> None:
    found = covered(n)
    enough = [value for case, value in found.items() if n * (case[2] + case[3]) >= ENOUGH]
    assert min(found.values()) >= 0.93 and max(enough) <= 0.97
    if n <= 200:
        for limit in LIMITS:
            for gained in GAINED:
                assert coverage.family_error(n, limit, gained) <= FAMILY_ERROR


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 100, 200])
def test_scores_and_perplexities(n: int) -> None:
    for kind in ("normal", "few fall, by any amount", "most fall by a little, a few rise by much"):
        assert coverage.simulated(n, kind, 10_000)[1] <= FAMILY_ERROR
    inside, wrong = coverage.simulated_texts(n, 10_000)
    assert 0.93 <= inside <= 0.97 and wrong <= FAMILY_ERROR
    if n >= 200:
        for kind in ("normal", "few fall, by any amount"):
            assert 0.93 <= coverage.simulated(n, kind, 10_000)[0] <= 0.97


def test_holm_by_hand() -> None:
    """Holm 1979: 0.01 < 0.05 / 4, 0.013 < 0.05 / 3, 0.03 is not below 0.05 / 2, and nothing after it counts."""
    p = {"d": 0.03, "a": 0.01, "c": 0.02999, "b": 0.013}
    assert holm(p) == ("a", "b")
    assert holm({}) == () and holm({"one": 0.0499}) == ("one",) and holm({"one": 0.05}) == ()
    assert PROBES == 10
