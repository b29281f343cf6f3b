"""benchmarks/real_remedies.py: each case is a recipe that can be run, and a case that is under way has no row."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from align.recipe.load import load

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package

from benchmarks import real_remedies as remedies  # noqa: E402


@pytest.mark.parametrize("name", remedies.CASES)
def test_each_case_is_a_recipe_that_can_be_run(name: str, tmp_path: Path) -> None:
    old, data = tmp_path / "old.jsonl", tmp_path / "data.jsonl"
    old.write_text('{"text": "Once there was a mill."}\n' * 20, encoding="utf-8")
    data.write_text('{"prompt": "2 + 2?", "completion": "4"}\n' * 40, encoding="utf-8")
    given = argparse.Namespace(model="lab", data=str(data), rate=3e-3, steps=30, items=60, more=json.dumps(str(old)))
    (tmp_path / "recipe.yaml").write_text(json.dumps(remedies.recipe(remedies.CASES[name], given, old)), "utf-8")
    (plan,) = load(tmp_path / "recipe.yaml").stages
    halved = {"half the rate": (1.5e-3, 30), "half the steps": (3e-3, 15)}.get(name, (3e-3, 30))
    assert (plan.training["learning_rate"], plan.training["max_steps"]) == halved


def test_a_case_that_is_under_way_has_no_row(tmp_path: Path) -> None:
    (tmp_path / "none/run").mkdir(parents=True)
    (tmp_path / "none/run/forgetting.json").write_text("{}", encoding="utf-8")
    assert len(list(remedies.table(tmp_path))) == 2, "the head of the table alone"
