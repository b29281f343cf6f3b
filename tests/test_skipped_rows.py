"""`on_bad_row: skip`: which faults it leaves out, which stop all the same, and where they are listed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from align.data.checks import Table, load
from align.data.sources import DataSource
from align.errors import AlignError
from align.preflight.check import prepare
from align.recipe import load as recipes
from align.run_folder.paths import RunDir

GOOD = '{"prompt": "a", "completion": "b"}\n'
EMPTY = '{"prompt": "a", "completion": ""}\n'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(name: str, **keys: Any) -> Table:
    source = DataSource(source=name, on_bad_row="skip", **keys)
    return load([source], root=Path(), accepts=frozenset({"chat", "prompt_completion"}), stage="sft")


def test_rows_with_errors_are_left_out_and_listed() -> None:
    pair = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    Path("x.jsonl").write_text(GOOD + '{"prompt": \n' + EMPTY + pair + '{"x": 1}\n[1]\n' + GOOD.replace("a", "c"))
    found = table("x.jsonl")
    assert [example.place.line for example in found.examples] == [1, 7]
    assert [str(fault.place) for fault in found.skipped] == [
        *("x.jsonl:2:12", "x.jsonl:3", "x.jsonl:4", "x.jsonl:5", "x.jsonl:6"),
    ]
    assert found.warnings == [
        "5 of 7 rows of 'x.jsonl' were skipped; the first: x.jsonl:2:12: malformed JSON: expected a value"
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("no.jsonl", None, "there is no file or folder 'no.jsonl'"),
        ("x.jsonl", b"", "the file is empty"),
        ("x.json", f"[{GOOD.strip()}, oh]".encode(), "malformed JSON: expected a value"),  # what follows is not read
        ("x.csv", b'prompt,completion\na,b\n"c,d\n', "the record is not well-formed"),
        ("x.jsonl.gz", gzip.compress(GOOD.encode() * 500, mtime=0)[:-30], "the gzip file is incomplete or damaged"),
        ("x.jsonl", (GOOD + "a\0b\n" + GOOD).encode(), "the line contains NUL characters"),
        ("x.jsonl", (EMPTY * 2).encode(), "'completion' is empty"),  # no row is left
    ],
)
def test_faults_of_a_file_stop_all_the_same(name: str, content: bytes | None, sentence: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(AlignError, match=sentence.replace("(", r"\(")):
        table(name)


def test_a_table_of_cells_goes_on_after_a_bad_record() -> None:
    Path("x.csv").write_text("prompt,completion\na,b\nc\nd,e\n")
    found = table("x.csv")
    assert [example.place.line for example in found.examples] == [2, 4]
    assert [str(fault.place) for fault in found.skipped] == ["x.csv:3"]


def test_a_recipe_lists_them_in_its_run_folder() -> None:
    from align.preflight.check import write_skipped

    Path("x.jsonl").write_text(GOOD * 3 + EMPTY)
    Path("x.yaml").write_text(
        "name: x\nmodel: {base: lab}\nparameterization: {method: lora}\n"
        "stages:\n  sft: {data: {source: x.jsonl, on_bad_row: skip}}\n"
    )
    prepared = prepare(recipes.load(Path("x.yaml")))
    assert any("1 of 4 rows of 'x.jsonl' was skipped" in note for note in prepared.notes)
    run = RunDir(Path("run").absolute())
    write_skipped(run, prepared.skipped)
    [line] = (run.data / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "place": "x.jsonl:4",
        "error": prepared.skipped[0].what,
        "remedy": prepared.skipped[0].remedy,
    }
    write_skipped(run, [])
    assert not (run.data / "skipped.jsonl").exists()


def test_by_default_they_stop() -> None:
    Path("x.jsonl").write_text(GOOD + EMPTY)
    with pytest.raises(AlignError):
        load([DataSource(source="x.jsonl")], root=Path(), accepts=frozenset({"prompt_completion"}), stage="sft")
