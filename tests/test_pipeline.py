"""Graphs of stages: their order, what a recipe says over a preset, stages of one's own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from align import shipped
from align.errors import AlignError, FaultList
from align.recipe import document, pipeline
from align.recipe.pipeline import Node
from align.stage import program as programs

MINE = """\
from dataclasses import dataclass

from align.stage.declaration import Stage

@dataclass
class State:
    steps: int = 0

def train(job):
    return {}

STAGE = Stage(description="mine", rows=frozenset({"text"}), train=train)
"""


def resolve(text: str, root: Path = Path()) -> list[Node]:
    faults = FaultList()
    nodes = pipeline.resolve(document.parse(text, "r.yaml"), root, faults)
    faults.raise_any()
    return nodes


def edges(text: str, root: Path = Path()) -> list[tuple[str, str, str]]:
    return [(node.id, node.program.name, node.policy) for node in resolve(text, root)]


def test_the_preset_of_the_main_path() -> None:
    assert edges("pipeline: sft_dpo\nstages: {dpo: {}, sft: {}}") == [("sft", "sft", "base"), ("dpo", "dpo", "sft")]


def test_a_recipe_says_more_than_its_preset() -> None:
    text = "pipeline: sft_dpo\nstages: {sft: {}, dpo: {policy: base}}"
    assert edges(text) == [("sft", "sft", "base"), ("dpo", "dpo", "base")]


def test_a_graph_in_the_recipe_may_branch() -> None:
    text = """\
stages:
  sft: {}
  mild: {stage: dpo, policy: sft}
  strict: {stage: dpo, policy: sft}
"""
    assert edges(text) == [("sft", "sft", "base"), ("mild", "dpo", "sft"), ("strict", "dpo", "sft")]


def test_a_pipeline_file_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("description: two\nstages: {one: {stage: sft}, two: {stage: sft, policy: one}}")
    text = "pipeline: two.yaml\nstages: {one: {}, two: {}}"
    assert edges(text, tmp_path) == [("one", "sft", "base"), ("two", "sft", "one")]


@pytest.mark.parametrize("name", shipped.names("pipelines"))
def test_every_shipped_pipeline_is_right(name: str) -> None:
    graph = pipeline.preset(name)
    entries = "".join(f"  {id}: {{}}\n" for id in graph.stages)
    assert [node.id for node in resolve(f"pipeline: {name}\nstages:\n{entries}")] == list(graph.stages)
    assert graph.description == graph.description.strip().rstrip(".")


def test_all_faults_of_a_graph_are_told_at_once() -> None:
    text = """\
stages:
  one: {stage: sftt}
  two: {stage: sft, policy: three}
  three: {stage: sft, policy: zero}
  four: {stage: sft, policy: five}
  five: {stage: sft, policy: six}
  six: {stage: sft, policy: four}
"""
    with pytest.raises(AlignError) as error:
        resolve(text)
    assert str(error.value).splitlines() == [
        "r.yaml:2:9: there is no stage 'sftt'",
        "  -> did you mean 'sft'?",
        "r.yaml:3:21: stage 'two' takes its policy from 'three', which comes later",
        "  -> write 'three' above 'two'",
        "r.yaml:4:23: stage 'three' takes its policy from 'zero', which is not a stage of this recipe",
        "  -> choose one of: base, one, two",
        "r.yaml:5:22: the stages wait for each other: four -> five -> six -> four",
        "  -> start one of them from base",
    ]


def test_edges_to_a_stage_itself_or_of_the_wrong_kind_are_told() -> None:
    text = """\
stages:
  self: {stage: sft, policy: self}
  reward: {stage: reward}
  from: {stage: dpo, policy: reward}
  one: {stage: ppo, reward: one}
  two: {stage: ppo, reward: later}
  later: {stage: reward}
  three: {stage: ppo, reward: [later, {source: self}]}
  own: {stage: reward, reward: own}
"""
    with pytest.raises(AlignError) as error:
        resolve(text)
    assert str(error.value).splitlines() == [
        "r.yaml:2:22: stage 'self' waits for itself",
        "  -> use base",
        "r.yaml:4:22: stage 'from' takes its policy from 'reward', which gives a reward",
        "  -> choose a stage that trains a policy, or base",
        "r.yaml:5:21: stage 'one' takes its reward from 'one', which gives a policy",
        "  -> choose a stage that trains a reward model, such as one with `stage: reward`",
        "r.yaml:6:21: stage 'two' takes its reward from 'later', which comes later",
        "  -> write 'later' above 'two'",
        "r.yaml:8:23: stage 'three' takes its reward from 'self', which gives a policy",
        "  -> choose a stage that trains a reward model, such as one with `stage: reward`",
        "r.yaml:9:24: stage 'own' waits for its own reward",
        "  -> name another",
    ]


def test_a_reward_of_the_preset_is_that_of_a_stage_that_says_none(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("description: p\nstages:\n  ppo: {reward: judge}\n  judge: {stage: reward}\n")
    with pytest.raises(AlignError) as error:
        resolve("pipeline: p.yaml\nstages: {ppo: {}, judge: {}}\n", tmp_path)
    assert str(error.value) == (
        "p.yaml:3:9: stage 'ppo' takes its reward from 'judge', which comes later\n  -> write 'judge' above 'ppo'"
    )
    resolve("pipeline: p.yaml\nstages: {ppo: {reward: ./judge.py}, judge: {}}\n", tmp_path)


def test_a_fault_of_a_preset_that_the_recipe_overrides_stands_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("description: p\nstages: {sft: {policy: base}}")
    with pytest.raises(AlignError) as error:
        resolve("pipeline: p.yaml\nstages:\n  sft: {policy: none}\n", tmp_path)
    assert str(error.value.place) == "r.yaml:3:9"


@pytest.mark.parametrize("id", ["../x", "a b", "a.b", "-a", "é", ""])
def test_an_id_is_the_name_of_a_folder(id: str) -> None:
    with pytest.raises(AlignError) as error:
        resolve(f"stages:\n  {json.dumps(id)}: {{stage: sft}}\n")
    assert str(error.value) == f"r.yaml:2:3: a stage cannot be called '{id}'\n  -> use letters, digits, '_' and '-'"


def test_a_stage_of_ones_own(tmp_path: Path) -> None:
    """It is known by its content, found beside the recipe, and its dataclasses find their module."""
    (tmp_path / "mine.py").write_text(MINE)
    program = programs.load("./mine.py", tmp_path)
    assert program.stage.description == "mine"
    assert program.sha256 == hashlib.sha256(MINE.encode()).hexdigest()
    (tmp_path / "mine.py").write_text(MINE.replace('"mine"', '"changed"'))
    assert programs.load("./mine.py", tmp_path).stage.description == "changed"


def test_a_stage_file_that_is_named_without_its_ending(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(AlignError) as error:
        programs.load("mine", tmp_path)
    assert str(error.value) == "there is no stage 'mine'\n  -> did you mean './mine.py'?"


def test_a_stage_file_that_leaves_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\n\n\ndef leave():\n    sys.exit(3)\n\n\nleave()\n")
    with pytest.raises(AlignError) as error:
        programs.load("./mine.py", tmp_path)
    what = "./mine.py:5: the stage file cannot be imported: SystemExit: 3"
    assert str(error.value) == f"{what}\n  -> correct the file there"


def test_a_users_folder_called_stages_is_not_in_the_way(tmp_path: Path) -> None:
    """Nobody imports `stages` by name: a folder of that name in the current one is another thing."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    (tmp_path / "stages" / "sft.py").write_text("raise RuntimeError('the wrong one')")
    code = "from pathlib import Path; from align.stage.program import load; print(load('sft', Path()).path)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(shipped.folder("stages") / "sft.py"), done.stderr
