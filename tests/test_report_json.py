"""`align report --json`: the document holds all that the page shows, and nothing that is no JSON."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import report_fixture as made
import runs
from align import report
from align.report import as_json
from align.report.html import visible
from align.report.records import load
from align.report.svg import MAX_POINTS
from align.run_folder import files
from align.run_folder.run_record import RunRecord

DOCS = Path(__file__).parents[1] / "docs" / "report.md"


@pytest.fixture
def run_dir(gated: runs.Gated, tmp_path: Path) -> Path:
    return made.write_run(gated, tmp_path / "runs" / "dpo_qlora")


def document(run_dir: Path) -> dict[str, Any]:
    def no(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found = json.loads(as_json.render(load(run_dir)), parse_constant=no)
    assert isinstance(found, dict)
    return found


def leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for entry in value.values() for text in leaves(entry)]
    if isinstance(value, list):
        return [text for entry in value for text in leaves(entry)]
    return [str(value)]


def test_every_key_is_documented(run_dir: Path) -> None:
    rows = DOCS.read_text(encoding="utf-8").partition("<!-- keys: report --json -->")[2]
    assert re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE) == list(document(run_dir))


class Cells(HTMLParser):
    """The texts that stand in cells, facts and code, each as its element has it; figures, their tables and what is
    made of a mark's name and its value are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = (dict(attrs).get("class") or "").split()
        skipped = tag in ("svg", "style") or {"numbers", "flag", "mark", "hidden"} & set(classes)
        self.open += ["skipped"] if skipped else [tag]

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "skipped" not in self.open and {"td", "dd", "pre"} & set(self.open) and data.strip():
            self.texts.append(normal(data))


def normal(text: str) -> str:
    return " ".join(visible(text).replace("−", "-").replace("×", "x").replace("`", "").split())


def test_every_cell_of_the_page_is_in_the_document(run_dir: Path) -> None:
    page = report.write(run_dir)[0].read_text(encoding="utf-8")
    page = re.sub(r"<(meta|col|line|circle|rect|path)\b[^>]*>", "", page)  # which have no end tag
    cells = Cells()
    cells.feed(page)
    shown = [normal(text) for text in leaves(document(run_dir))]
    whole = " ".join(shown)  # the lines of a block stand one after the other
    missing = {text for text in cells.texts if text not in whole} - {"–"}
    assert len(set(cells.texts)) > 150 and missing == set()


def test_texts_are_those_of_the_page_and_numbers_are_those_of_the_matrix(run_dir: Path) -> None:
    found = document(run_dir)
    assert found["version"] == 1 and found["title"] == "dpo_qlora" and found["under_way"] is None
    assert found["headline"]["word"] == "FAILED"
    [add] = [row for block in found["blocks"] for row in block["rows"] if row["name"] == "add"]
    assert add["n"] == 200
    assert add["entries"][2] == {"score": "0.050", "change": "-0.325", "verdict": "FORGOT", "direction": "worse"}
    assert found["measurements"] == json.loads((run_dir / "forgetting.json").read_text(encoding="utf-8"))
    assert found["broken"][1]["shown"][0]["after"] == made.INJECTION, "as it is: JSON has no markup"
    loss = next(figure for figure in found["figures"] if figure["title"] == "Loss of sft")
    assert loss["x"] == "step" and [one["name"] for one in loss["series"]] == ["train loss", "eval loss"]
    logged = [[row["step"], row["loss"]] for row in made.sft_metrics() if "loss" in row]
    assert len(logged) <= MAX_POINTS and loss["series"][0]["points"] == logged


def test_what_is_not_finite_is_null_and_what_is_no_text_is_escaped(run_dir: Path) -> None:
    lines = [{"step": step, "max_steps": 4, "loss": float("nan") if step == 3 else 1.0} for step in range(1, 5)]
    made.write_metrics(run_dir / "stages/sft/metrics.jsonl", lines)
    text = as_json.render(load(run_dir))
    assert text.isascii() and "\\ud800" in text and "\\u0000" in text
    assert document(run_dir)["stages"][0]["judgements"][0][1]["tone"] == "bad"
    assert as_json.plain([float("inf"), (1, None), {"a": float("nan")}]) == [None, [1, None], {"a": None}]


def test_the_command_prints_it_and_writes_nothing(run_dir: Path) -> None:
    (run_dir / ".lock").touch()
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != ".lock"}
    done = runs.align("report", str(run_dir), "--json")
    assert json.loads(done.stdout) | {"written": ""} == document(run_dir) | {"written": ""} and done.stderr == ""
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != ".lock"} == before


def test_a_folder_that_is_no_run_is_the_same_error_as_without(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with_json, without = (runs.align("report", str(tmp_path / "x"), *more, code=2) for more in (["--json"], []))
    assert with_json.stderr == without.stderr and with_json.stdout == "" and list((tmp_path / "x").iterdir()) == []


def test_a_run_with_a_matrix_has_no_reason_why_there_is_none(run_dir: Path) -> None:
    found = document(run_dir)
    assert found["blocks"] and found["nothing"] == ""


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    files.write_json(tmp_path / "run.json", RunRecord(name="empty").written())
    found = document(tmp_path)
    assert (
        found["measurements"] is None
        and found["figures"] == []
        and found["nothing"] == "Nothing has been measured yet."
    )
