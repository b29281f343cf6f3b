"""Where a path that a user wrote points."""

from __future__ import annotations

from pathlib import Path

import pytest

from align import user_paths


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder; the current one is another."""
    (tmp_path / "here").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "recipes"


def test_the_current_folder_goes_before_the_recipe_s(recipes: Path) -> None:
    (recipes / "rows.jsonl").touch()
    assert user_paths.find("rows.jsonl", recipes) == recipes / "rows.jsonl"
    Path("rows.jsonl").touch()
    assert user_paths.find("rows.jsonl", recipes) == Path("rows.jsonl")


def test_what_it_has_to_be_decides(recipes: Path) -> None:
    Path("model").touch()
    (recipes / "model").mkdir()
    assert user_paths.find("model", recipes, Path.is_dir) == recipes / "model"
    assert user_paths.find("none", recipes) is None


def test_home_is_written_with_a_tilde(recipes: Path, tmp_path: Path) -> None:
    (tmp_path / "home" / "rows.jsonl").touch()
    assert user_paths.find("~/rows.jsonl", recipes) == tmp_path / "home" / "rows.jsonl"
    assert user_paths.candidates("~nobody-of-that-name/rows.jsonl", recipes) == [
        Path("~nobody-of-that-name/rows.jsonl")
    ]


def test_one_folder_is_looked_into_once(recipes: Path) -> None:
    assert user_paths.candidates("rows.jsonl", Path.cwd()) == [Path("rows.jsonl")]
    assert user_paths.candidates("rows.jsonl", Path()) == [Path("rows.jsonl")]
    assert user_paths.candidates("rows.jsonl", recipes) == [Path("rows.jsonl"), recipes / "rows.jsonl"]
    assert user_paths.candidates("/data/rows.jsonl", recipes) == [Path("/data/rows.jsonl")]
