"""The report of a run that is under way: what it says, how often it is written, and that it ends with the run."""

import json
import os
import re
import signal
from datetime import datetime
from pathlib import Path

import pytest

import report_fixture as made
import runs
from align import report
from align.errors import AlignError
from align.report import numbers
from align.report.records import load
from align.report.under_way import UnderWay, under_way
from align.run_folder.paths import RunDir
from align.runner import live_page
from align.runner.live_page import LivePage

BEGAN = datetime.fromisoformat(made.STARTED).timestamp()


@pytest.fixture
def run_dir(gated: runs.Gated, tmp_path: Path) -> Path:
    """ppo, the last of four stages, is at work."""
    folder = made.write_run(gated, tmp_path / "runs" / "dpo_qlora")
    made.change_stage(folder, "reward", status="done")
    made.change_stage(folder, "ppo", status="running", started=made.STARTED)
    return folder


def tell(run_dir: Path, at: str) -> None:
    made.write_lines(run_dir / "stages/ppo/progress.jsonl", [{"time": 1.0, "at": "earlier"}, {"time": 2.0, "at": at}])


def log(run_dir: Path, *steps: tuple[float, float]) -> None:
    """Lines of (seconds after the stage began, step) of 120."""
    lines = [{"step": step, "max_steps": 120, "time": BEGAN + after} for after, step in steps]
    made.write_lines(run_dir / "stages/ppo/metrics.jsonl", lines)


def test_a_run_under_way_says_how_far_it_is(run_dir: Path) -> None:
    assert under_way(load(run_dir)) is None, "nobody says that it is"
    place = "stage 4 of 4 (ppo)"
    assert under_way(load(run_dir, live=True)) == UnderWay(f"{place}, loading")
    tell(run_dir, "measuring the base on 12 probes, before anything is trained")
    text = f"{place}, measuring the base on 12 probes, before anything is trained"
    assert under_way(load(run_dir, live=True)) == UnderWay(text)
    tell(run_dir, "loading")
    log(run_dir, (5, 0))
    assert under_way(load(run_dir, live=True)) == UnderWay(f"{place}, step 0 of 120", 0.0)
    log(run_dir, (-500, 0), (-100, 90), (5, 20), (95, 40))  # resumed from step 20: 4.5 s a step, 80 to go
    found = under_way(load(run_dir, live=True))
    assert found == UnderWay(f"{place}, step 40 of 120, about 6 min 00 s left in this stage", 40 / 120)
    log(run_dir, (5, 0), (95, 120))
    assert under_way(load(run_dir, live=True)) == UnderWay(f"{place}, trained, measuring", 1.0)
    made.change_stage(run_dir, "ppo", status="pending")
    assert under_way(load(run_dir, live=True)) == UnderWay("between two stages")
    made.change_stage(run_dir, "ppo", status="done")
    assert under_way(load(run_dir, live=True)) == UnderWay("all stages are done")


def test_the_page_loads_itself_again_only_while_the_run_is_under_way(run_dir: Path) -> None:
    log(run_dir, (5, 0), (65, 30))
    page, markdown = (path.read_text(encoding="utf-8") for path in report.write(run_dir, live=True))
    assert page.count('<meta http-equiv="refresh" content="10">') == 1
    assert "stage 4 of 4 (ppo), step 30 of 120, about 3 min 00 s left in this stage." in page and "width: 25.0%" in page
    assert "What to do next" not in page
    assert "Under way: stage 4 of 4 (ppo), step 30 of 120" in markdown
    page, markdown = (path.read_text(encoding="utf-8") for path in report.write(run_dir))
    assert "refresh" not in page and "UNDER WAY" not in page + markdown and "INTERRUPTED" in page


def test_the_child_of_a_parent_that_is_gone_ends_the_reloading(run_dir: Path) -> None:
    evil = 'UNDER WAY <b>Under way:</b> <meta http-equiv="refresh">'
    made.rename_probe(run_dir, "sentiment", evil)
    page = report.write(run_dir, live=True)[0]
    before = page.read_text(encoding="utf-8")
    report.break_off(run_dir)
    after = page.read_text(encoding="utf-8")
    assert '<meta http-equiv="refresh"' not in after and "loads itself" not in after
    assert "<b>Broken off at:</b> stage 4 of 4 (ppo), loading." in after and ">BROKEN OFF</span>" in after
    assert after.count("UNDER WAY &lt;b&gt;") == before.count("UNDER WAY &lt;b&gt;") > 0, "what is text stays as it is"
    report.break_off(run_dir)
    assert page.read_text(encoding="utf-8") == after
    page.unlink()
    report.break_off(run_dir)
    assert not page.exists()


class Clock:
    """Wall and CPU time by hand."""

    def __init__(self) -> None:
        self.wall, self.cpu = 1000.0, 0.0

    def monotonic(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.cpu


def test_it_is_written_when_the_base_is_measured_and_every_half_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written, cost = Clock(), list[str](), 0.1
    monkeypatch.setattr(live_page, "time", clock)

    def write(folder: Path, *, live: bool) -> None:
        assert live
        clock.cpu += cost
        written.append("page")

    monkeypatch.setattr(report, "write", write)
    page = LivePage(RunDir(tmp_path), lambda: written.append("table"), written.append)
    page.write(measured=True)
    assert written == ["table", "page"]
    clock.wall += 29.9
    page.tick()
    assert written == ["table", "page"]
    clock.wall += 0.2
    page.tick()
    assert written == ["table", "page", "page"]
    (tmp_path / "base/measurements").mkdir(parents=True)
    (tmp_path / "base/measurements/summary.json").touch()
    page.tick()
    page.tick()
    assert written[3:] == ["table", "page"], "once"
    cost = 0.6  # at most a hundredth of the time
    clock.wall += 31
    page.tick()
    clock.wall += 59
    page.tick()
    assert written[5:] == ["page"]
    clock.wall += 2
    page.tick()
    assert written[5:] == ["page", "page"]


@pytest.mark.parametrize(
    "error",
    [AlignError("a row is damaged", "run it again"), OSError("no space left on device"), ValueError("no such figure")],
)
def test_a_page_that_cannot_be_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(folder: Path, *, live: bool) -> None:
        raise error

    said = list[str]()
    monkeypatch.setattr(report, "write", fail)
    page = LivePage(RunDir(tmp_path), lambda: None, said.append)
    page.write()
    page.write()
    assert said == [f"the report could not be brought up to date: {error}"], "told once"


def test_a_run_that_has_ended_has_a_page_that_rests(gated: runs.Gated) -> None:
    for folder in (gated.run, gated.stopped):
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "Under way" not in page and "refresh" not in page
        seconds = json.loads((folder / "base/measurements/summary.json").read_text())["seconds"]
        assert f'<dt>Of that, measuring the base</dt><dd dir="auto">{numbers.seconds(seconds)}</dd>' in page


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_page_that_is_open_shows_progress_and_comes_to_rest_when_the_run_dies(tmp_path: Path, number: int) -> None:
    recipe = runs.write(tmp_path, runs.RECIPE.replace("max_steps: 12", "max_steps: 2000"))
    folder = tmp_path / "run"
    process = runs.started(recipe, folder)
    page = folder / "report.html"
    runs.wait_for(process, page.is_file)
    assert 'http-equiv="refresh"' in page.read_text() and "stage 1 of 2 (sft), loading" in page.read_text()
    runs.wait_for(process, lambda: bool(re.search(r"\(sft\), step \d+ of 2,000", page.read_text())))
    assert 'http-equiv="refresh"' in page.read_text()
    [child] = runs.children(process.pid)
    os.kill(process.pid, number)
    process.wait()
    runs_on = True
    while runs_on:  # the child of a parent that is gone ends by itself
        runs_on = Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]
    text = page.read_text()
    assert "refresh" not in text and "loads itself" not in text
    assert (">BROKEN OFF<" if number == signal.SIGKILL else ">INTERRUPTED<") in text
