"""The statistics of benchmarks/forgetting_predictors.py, and its recipes."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from scipy import stats

from align.recipe.load import load
from benchmarks.forgetting_predictors import METHODS, Point, fit, interval, left_out_error, settings, spearman, table


def test_the_rank_correlation_is_that_of_scipy() -> None:
    draw = random.Random(3)
    one = [draw.randrange(6) for _ in range(30)]  # with ties
    other = [value + draw.gauss(0, 2) for value in one]
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    low, high = interval(one, other)
    assert low < spearman(one, other) < high


def points(bend: float) -> list[Point]:
    """Drops that follow one parabola in the KL, whatever the method; the drift does so within a method alone."""
    found = []
    for number, method in enumerate(METHODS):
        for kl in (0.1, 0.2, 0.4, 0.6):
            known = {"kl_own": kl, "drift": kl * 10**number}
            found.append(Point(method, "sft", method, 0.1 + kl + bend * kl * kl, known))
    return found


def test_a_predictor_that_holds_for_every_method_has_no_error_on_the_one_left_out() -> None:
    found = points(bend=0.5)
    assert left_out_error(found, "kl_own") == pytest.approx(dict.fromkeys(METHODS, 0.0), abs=1e-9)
    assert min(left_out_error(found, "drift").values()) > 0.05
    drops = [point.drop for point in found[:4]]
    mean = sum(drops) / 4  # the same for every method here
    expected = math.sqrt(sum((drop - mean) ** 2 for drop in drops) / 4)
    assert left_out_error(found, None) == pytest.approx(dict.fromkeys(METHODS, expected))
    head, line, *rows = table(found).splitlines()
    assert head.endswith("| full | lora | qlora | spectrum | mean |") and line.count("|") == head.count("|")
    assert rows[0].startswith("| KL to the base, its own answers | 16 | +1.00 (+1.00 to +1.00) | 1.00 | 0.000 |")


def test_a_fit_is_not_asked_beyond_what_it_saw() -> None:
    curve = fit([1.0, 2.0, 3.0], [1.0, 4.0, 9.0])
    assert [curve(value) for value in (2.5, 3.0, 30.0, 0.0)] == pytest.approx([6.25, 9.0, 9.0, 1.0])


def test_there_are_enough_runs_and_their_recipes_are_right(tmp_path: Path) -> None:
    found = settings()
    assert len({setting.name for setting in found}) == len(found) >= 40
    kinds = {(setting.method, setting.chain): setting for setting in found}
    for setting in kinds.values():
        (tmp_path / "recipe.yaml").write_text(json.dumps(setting.recipe()), encoding="utf-8")
        assert len(load(tmp_path / "recipe.yaml").stages) == (1 if setting.chain == "sft" else 2)
