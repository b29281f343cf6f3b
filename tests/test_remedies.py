"""The experiments on remedies: what they read from runs, against figures worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from scipy.stats import spearmanr

from align.advice.lines import Line
from align.lab.skills import SKILLS
from align.recipe import load
from benchmarks import advice, method_order, remedies, written_tables
from benchmarks.method_order import Point, at_equal_task, chance


def summary(folder: Path, task: float, skill: float, text: float, gate: float | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scores = {
        split: {name: {"score": score} for name, score in
                {**dict.fromkeys(SKILLS, skill), "helpdesk correct": right, "stories": text}.items()}
        for split, right in (("report", task), ("gate", task if gate is None else gate))
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({"scores": scores}))


def cell(root: Path, name: str, task: float, skill: float, seed: int = 7, gate: float | None = None) -> None:
    here = root / f"{name}-lora-{seed}"
    summary(here / "run/base/measurements", 0.0, 1.0, 2.0)
    summary(here / "run/stages/dpo/measurements", task, skill, 3.0, gate)
    for stage in ("sft", "dpo"):
        (here / f"run/stages/{stage}").mkdir(parents=True, exist_ok=True)
        (here / f"run/stages/{stage}/outcome.json").write_text('{"cpu_seconds": 15.0}')
    (here / "spent.json").write_text("42.0")


@pytest.fixture
def bench(tmp_path: Path) -> remedies.Bench:
    cell(tmp_path, "none", 0.8, 0.5)
    cell(tmp_path, "replay_5", 0.8, 0.7, gate=0.2)
    cell(tmp_path, "replay_20", 0.7, 0.9)
    cell(tmp_path, "replay_20", 0.5, 0.8, seed=8)
    return remedies.Bench(tmp_path)


def by_name(name: str) -> remedies.Remedy:
    return next(remedy for remedy in remedies.remedies() if remedy.name == name)


def test_a_cell_is_the_mean_over_its_seeds(bench: remedies.Bench) -> None:
    found = bench.cell(by_name("replay 20 %"), "lora")
    assert found is not None
    assert (found.seeds, found.task, found.perplexity, found.cpu) == (2, 0.6, 3.0, 30.0)
    assert found.skills == pytest.approx(0.85) and found.both == pytest.approx(0.725)
    assert (found.task_range, found.skills_range) == ((0.5, 0.7), (pytest.approx(0.8), pytest.approx(0.9)))
    assert "| 0.600 (0.50-0.70) | 0.850 (0.80-0.90) | 3.00 | 30 | 2 |" in written_tables.cells([found])
    assert (found.stage, found.change, dict(found.keys)) == (
        "sft", "replay", {"replay": {"data": "lab/general", "ratio": 0.2}},
    )  # fmt: skip
    assert bench.cell(by_name("sdft"), "lora") is None and bench.cell(by_name("none"), "full") is None


def test_gate_items_choose_among_the_strengths_of_a_remedy(bench: remedies.Bench) -> None:
    chosen = [remedy for remedy in remedies.remedies() if remedy.family == "replay"]
    assert list(remedies.best(bench, chosen, "lora")) == ["replay, lora: replay 20 %"]


def test_the_picture_has_a_point_for_each_remedy(bench: remedies.Bench) -> None:
    names = ("none", "replay 5 %", "replay 20 %")
    cells = [(by_name(name), found) for name in names if (found := bench.cell(by_name(name), "lora"))]
    drawn = remedies.picture(cells, remedies.base_mean(bench.root), "lora")
    root = ElementTree.fromstring(drawn)
    texts = {"".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")}
    assert set(names) <= texts and "task correct" in texts


def test_only_what_nothing_beats_is_on_the_front(bench: remedies.Bench) -> None:
    names = ("none", "replay 5 %", "replay 20 %")
    cells = [found for name in names if (found := bench.cell(by_name(name), "lora"))]
    assert remedies.front(cells) == ["replay 5 %", "replay 20 %"], "none is as good at the task, and worse at the rest"
    assert remedies.front([*cells, cells[1]]) == ["replay 5 %", "replay 20 %", "replay 5 %"], "equals beat no one"


def test_the_names_of_remedies_and_their_folders_are_all_different() -> None:
    every = list(remedies.remedies())
    assert len({one.name for one in every}) == len({one.folder for one in every}) == len(every)
    assert sum(one.family == "EWC" for one in every) == 7, "six decades"


def test_a_recipe_that_the_installed_align_takes_is_not_refused(bench: remedies.Bench) -> None:
    recipe = bench.root / "recipe.yaml"
    for name in ("none", "replay 50 %", "half the rate", "half the steps", "early stop"):
        recipe.write_text(json.dumps(bench.recipe(by_name(name), "lora", 7)))
        load.load(recipe)
    unknown = replace(by_name("none"), sft={"no_such_key": 1})
    assert "no_such_key" in bench.refused(unknown, "lora") and bench.refused(by_name("none"), "lora") == ""


# The order of methods -------------------------------------------------------------------------------------------------


def test_forgetting_is_read_where_the_task_is_equal() -> None:
    points = [Point(0.2, 0.0, 0.1), Point(0.6, 0.4, 0.3), Point(0.9, 1.0, 0.9)]
    assert at_equal_task(points, 0.5) == pytest.approx((0.3, 0.25))
    assert at_equal_task(points, 0.6) == pytest.approx((0.4, 0.3))
    assert at_equal_task(points, 0.95) is None and at_equal_task(points[:1], 0.2) is None


def test_rates_are_tried_until_two_lie_around_the_target() -> None:
    learnt = {0.36: 0.1, 0.6: 0.3, 1.0: 0.9, 1.7: 1.0}
    assert method_order.search(1.0, learnt.get, 0.5) == [0.6, 1.0]
    assert method_order.search(0.36, learnt.get, 0.5) == [0.36, 0.6, 1.0]
    assert method_order.search(1.0, learnt.get, 0.05) == [0.36, 0.6, 1.0], "no lower one is there"
    assert method_order.search(1.0, {1.0: 0.2, 1.7: 0.09, 2.8: 0.0}.get, 0.5) == [1.0, 1.7], "it learns less"
    assert len(method_order.search(1.0, lambda _: 0.0, 0.5)) == method_order.AT_MOST


def test_the_chance_of_an_order_is_exact() -> None:
    one, other = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]
    found = spearmanr(one, other).statistic
    expected = [spearmanr(one, order).statistic >= found - 1e-9 for order in permutations(other)]
    assert chance(one, other) == sum(expected) / len(expected) == 4 / 24


def test_a_point_is_the_change_since_the_base(tmp_path: Path) -> None:
    summary(tmp_path / "base/measurements", 0.0, 1.0, 2.0)
    summary(tmp_path / "stages/sft/measurements", 0.7, 0.75, 3.0, gate=0.6)
    found = method_order.point(tmp_path / "stages/sft")
    assert (found.task, found.drop) == (0.6, 0.25) and found.nats == pytest.approx(math.log(1.5))


def test_every_method_of_the_order_is_one_that_a_recipe_takes(tmp_path: Path) -> None:
    assert set(method_order.METHODS) == set(method_order.PEFT)
    for name, method in method_order.METHODS.items():
        path = tmp_path / f"{name}.yaml"
        stage = {"sft": {"data": "lab/helpdesk"}}
        path.write_text(
            json.dumps({"name": name, "model": {"base": "lab"}, "parameterization": method.keys, "stages": stage})
        )
        load.load(path)


# Runs that went wrong -------------------------------------------------------------------------------------------------


def test_lines_are_written_into_a_recipe_with_a_file_in_place_of_the_placeholder() -> None:
    recipe = {"stages": {"sft": {"replay": None, "training": {"max_steps": 9}}}}
    advice.put(recipe, Line(("stages", "sft", "replay", "data"), None, ["old", "FILE"]), "rows.jsonl")
    advice.put(recipe, Line(("stages", "sft", "training", "max_steps"), 9, 4), "")
    assert recipe["stages"]["sft"] == {"replay": {"data": ["old", "rows.jsonl"]}, "training": {"max_steps": 4}}


def test_rows_of_skills_are_questions_and_of_any_other_name_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    advice.write_rows(path, ["copy", "stories"], each=3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(row) for row in rows] == [{"messages"}] * 3 + [{"text"}] * 3


def test_every_case_is_a_recipe(tmp_path: Path) -> None:
    advice.write_rows(tmp_path / advice.NARROW, ["copy"])
    for case in advice.CASES:
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({"name": "x", "model": {"base": "lab"}} | case.recipe))
        stages = load.load(path).stages
        assert case.stage in {stage.id for stage in stages}
    assert len({case.cause for case in advice.CASES}) == len(advice.CASES) >= 5


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no mark <!-- table: mended -->"):
        written_tables.filled("# Remedies\n", written_tables.measured())
