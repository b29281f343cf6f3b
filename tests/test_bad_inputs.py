"""Every bad input gets its sentence: what is wrong, the place, the way out. No traceback, and no torch.

The cases stand in tests/bad_inputs/*.yaml. All of them are given to the real command in one fresh process, so that
what it imports is seen.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.cli.commands import app
from align.cli.guard import guarded
from error_cases import CHATS, RECIPE, cases, page

HERE = Path(__file__).parent
# pydantic's and the parser's words, and the names of union branches.
RAW = re.compile(
    r"Input should be|Value error|value_error|validation error|Field required|Extra inputs|DataSource|list\[|"
    r"for all|by name|Traceback|ruamel|pydantic|None\b"
)
Check = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the command says to each case."""
    folder = tmp_path_factory.mktemp("bad_inputs")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "NO_COLOR": "1"}
    command = [sys.executable, str(HERE / "bad_input_driver.py"), str(folder / "cases")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """`align check` of a recipe in a folder of its own: the exit code and what it says on stderr."""
    monkeypatch.chdir(tmp_path)

    def check(recipe: str, *more: str, **files: str) -> tuple[int, str]:
        Path("recipe.yaml").write_text(recipe)
        Path("chats.jsonl").write_text(CHATS)
        for name, text in files.items():
            Path(f"{name}.jsonl").write_text(text)
        monkeypatch.setattr(sys, "argv", ["align", "check", "recipe.yaml", *more])
        code = guarded(app)
        return code, capsys.readouterr().err

    return check


@pytest.mark.parametrize("name", cases())
def test_a_bad_input_gets_its_sentence(name: str, answers: dict[str, dict[str, Any]]) -> None:
    case, found = cases()[name], answers[name]
    assert found["said"] == case.says
    assert found["code"] == case.exit
    assert found["heavy"] == []


@pytest.mark.parametrize("name", cases())
def test_a_sentence_has_a_way_out_and_no_jargon(name: str) -> None:
    faults = re.split(r"\n(?!  -> )", cases()[name].says)
    for fault in faults:
        what, arrow, remedy = fault.partition("\n  -> ")
        assert arrow and remedy.strip(), f"no way out: {fault}"
        assert not what.endswith(".") and not remedy.endswith(".")
        assert not RAW.search(what), fault


def test_the_page_shows_the_cases() -> None:
    shown = HERE.parent / "docs" / "errors.md"
    assert shown.read_text(encoding="utf-8") == page(), "python tests/error_cases.py > docs/errors.md"


def test_the_faults_of_recipe_model_and_data(check: Check) -> None:
    """Those of the model, of two data files and of the probes are told together, each at its place."""
    recipe = """\
name: chain
model: {base: no/where/here}
forgetting: {probes: {sums: {data: zzz.jsonl, metric: accuracy}}}
stages:
  sft: {data: bad.jsonl}
  again: {stage: sft, data: [chats.jsonl, qqq.csv], policy: sft}
"""
    code, said = check(recipe, bad='{"text": 1}\n')
    places = re.findall(r"^error (\S+): ", said, re.MULTILINE)
    assert code == 2
    assert places == ["recipe.yaml:2:9", "bad.jsonl:1", "recipe.yaml:6:43", "recipe.yaml:3:23"]


def test_a_fault_that_two_stages_share_is_told_once(check: Check) -> None:
    recipe = RECIPE + "  again: {stage: sft, data: rows.jsonl, policy: sft}\n"
    _, said = check(recipe.replace("chats.jsonl", "rows.jsonl"), rows='{"body": 1}\n')
    assert said.count("error ") == 1


def test_a_default_parameterization_that_is_wrong_is_told_once(check: Check) -> None:
    recipe = "parameterization: {method: lora, lora: {r: 0}}\n" + RECIPE
    _, said = check(recipe + "  again: {stage: sft, data: chats.jsonl, policy: sft}\n")
    assert said.count("error ") == 1


def test_the_recipe_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    Path("deep/r.yaml").write_text(RECIPE.replace("chats", "none"))
    for given in ("deep/r.yaml", str(tmp_path / "deep/r.yaml")):
        monkeypatch.setattr(sys, "argv", ["align", "check", given])
        with pytest.MonkeyPatch.context() as patch:
            said: list[str] = []
            patch.setattr("rich.console.Console.print", lambda self, text, said=said, **_: said.append(str(text)))
            assert guarded(app) == 2
        assert said[0].startswith(f"error {given}:5:5: there is no file")
