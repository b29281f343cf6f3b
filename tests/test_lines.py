"""What a user named is shown as it is: brackets are no markup, and numbers between colons no emoji."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

import align
import report_fixture as made
import runs
from align import cli
from align.report import records, terminal
from align.run_folder import files, reading
from align.run_folder.run_record import RunRecord
from align.runner import progress
from align.runner.lines import line

ALIGN = Path(align.__file__).parent
STRANGE = "[a] [/x] [bold]b[/bold] rows.jsonl:100: :x: \\[c"


def shown(*texts: object) -> str:
    console = Console(file=io.StringIO(), width=300)
    for text in texts:
        console.print(text)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(written, str)
    return written


def test_a_line_is_shown_as_it_is() -> None:
    assert shown(line(STRANGE), line(STRANGE, "note")) == f"{STRANGE}\nnote {STRANGE}\n"


def test_a_run_says_it_as_it_is(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    watcher = progress.Watcher(console)
    watcher.say(STRANGE, "note")
    metrics = tmp_path / "metrics.jsonl"
    watcher.begin("[/sft]", metrics, tmp_path / "progress.jsonl")
    metrics.write_text(json.dumps({"alarm": STRANGE, "time": 4e9}) + "\n")
    watcher.refresh()
    assert console.file.getvalue() == f"note {STRANGE}\nalarm [/sft]: {STRANGE}\n"  # type: ignore[attr-defined]


def test_the_bar_of_a_stage_is_drawn_whatever_its_name(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with progress.Watcher(console) as watcher:
        watcher.begin("[/sft]", tmp_path / "metrics.jsonl", tmp_path / "progress.jsonl")
    assert "[/sft]" in console.file.getvalue()  # type: ignore[attr-defined]


ROWS = [
    {"messages": [{"role": "user", "content": "2 + 2?", "[/x]": 1}, {"role": "assistant", "content": "4"}]},
    {"text": "", ":100:": 1},
]


def test_check_shows_notes_and_faults_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "[a]").mkdir()
    file = tmp_path / "[a]" / "x.jsonl"
    recipe = tmp_path / "r.yaml"
    recipe.write_text('name: x\nmodel: {base: lab}\nstages: {sft: {data: "[a]/x.jsonl"}}\n')
    file.write_text(json.dumps(ROWS[0]) + "\n")
    monkeypatch.setattr("sys.argv", ["align", "check", "r.yaml"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "note stage sft: 1 row has '[/x]' in its messages, which is not used\n" in capsys.readouterr().err
    file.write_text("\n" * 99 + json.dumps(ROWS[1]) + "\n")
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    said = "error [a]/x.jsonl:100: 'text' is empty\n  -> fill it in, or remove the row\n"
    assert capsys.readouterr().err == said


def test_status_shows_a_run_as_it_is(
    gated: runs.Gated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = reading.read(gated.run / "run.json", RunRecord)
    entry = record.stages["sft"].but(stage="./[b].py", seconds=3.0)
    files.write_json(tmp_path / "run.json", record.but(name="[/x]", order=("a",), stages={"a": entry}).written())
    monkeypatch.setattr("sys.argv", ["align", "status", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    out = capsys.readouterr().out
    assert out.splitlines()[0].strip() == "[/x]"
    assert out.splitlines()[-1].split() == ["a", "./[b].py", "base", "done", "3.0"]


def test_the_matrix_names_probes_as_they_are(gated: runs.Gated, tmp_path: Path) -> None:
    run = made.copied(gated.run, tmp_path / "run")
    made.rename_probe(run, "extract", "[/x] [a]")
    report = records.load(run)
    assert "[/x] [a]" in shown(terminal.matrix_table(report), line(terminal.verdict_line(report)))


def test_no_text_is_printed_with_markup_in_it() -> None:
    """Whoever writes `[yellow]note[/yellow] {text}` shows `text` as markup too."""
    found = [
        f"{path.relative_to(ALIGN)}:{number}"
        for path in ALIGN.rglob("*.py")
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"\[/?(red|yellow|green|bold|italic)\]", text) and "epilog=" not in text
    ]
    assert found == []
