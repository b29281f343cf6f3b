"""What a person sees while a run is under way, on a plain terminal and on a live one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from align.run_folder.paths import RunDir
from align.run_folder.records import LOADING
from align.runner.progress import Watcher
from models import BASE, LORA, Stages


def write(path: Path, *entries: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({"time": time.time(), **entry}) + "\n" for entry in entries)


def said(watcher: Watcher) -> list[str]:
    assert isinstance(watcher.console.file, StringIO)
    return watcher.console.file.getvalue().splitlines()


def plain() -> Watcher:
    return Watcher(Console(file=StringIO(), width=200))


def test_measuring_the_base_is_told_before_training_begins(tmp_path: Path) -> None:
    watcher, metrics, progress = plain(), tmp_path / "metrics.jsonl", tmp_path / "progress.jsonl"
    with watcher:
        watcher.begin("sft", metrics, progress)
        watcher.refresh()
        assert said(watcher) == []
        write(progress, {"at": "measuring the base on 2 probes"})
        watcher.refresh()
        write(progress, {"at": LOADING})
        write(metrics, {"step": 0, "max_steps": 4}, {"step": 4, "max_steps": 4, "loss": 0.5})
        watcher.refresh()
    assert said(watcher) == ["sft: measuring the base on 2 probes", "sft  4/4  loss 0.500"]


def test_a_live_bar_says_that_the_base_is_measured(tmp_path: Path) -> None:
    watcher = Watcher(Console(file=StringIO(), width=200, force_terminal=True))
    with watcher:
        watcher.begin("sft", tmp_path / "metrics.jsonl", tmp_path / "progress.jsonl")
        assert watcher.bars is not None and watcher.task is not None
        assert watcher.bars.tasks[0].fields["figures"] == "loading"
        write(tmp_path / "progress.jsonl", {"at": "measuring the base on 2 probes"})
        watcher.refresh()
        assert watcher.bars.tasks[0].fields["figures"] == "measuring the base on 2 probes"


def test_a_warning_is_said_once_and_as_it_is(tmp_path: Path) -> None:
    watcher, progress = plain(), tmp_path / "progress.jsonl"
    with watcher:
        watcher.begin("sft", tmp_path / "metrics.jsonl", progress)
        write(progress, {"warning": "the base [in 4 bits] is worse"})
        watcher.refresh()
        watcher.refresh()
        watcher.warn("sft", "the base [in 4 bits] is worse")  # as the outcome repeats it
        watcher.begin("dpo", tmp_path / "metrics.jsonl", tmp_path / "other.jsonl")
        watcher.warn("dpo", "the base [in 4 bits] is worse")  # of another stage it is news
    assert said(watcher) == [f"warning {stage}: the base [in 4 bits] is worse" for stage in ("sft", "dpo")]


def test_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    watcher, progress = plain(), tmp_path / "progress.jsonl"
    with watcher:
        watcher.begin("sft", tmp_path / "metrics.jsonl", progress)
        progress.write_text('{"warning": "half')
        watcher.refresh()
        assert said(watcher) == []
        progress.write_text('{"warning": "half a line"}\n')
        watcher.refresh()
    assert said(watcher) == ["warning sft: half a line"]


def test_a_line_is_read_once_whatever_its_letters(tmp_path: Path) -> None:
    watcher, progress = plain(), tmp_path / "progress.jsonl"
    with watcher:
        watcher.begin("sft", tmp_path / "metrics.jsonl", progress)
        for lines in (("é" * 99, "one"), ("two",)):  # as many bytes more than letters as a line has
            with progress.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"at": at}, ensure_ascii=False) + "\n" for at in lines)
            watcher.refresh()
    assert said(watcher) == [f"sft: {'é' * 99}", "sft: one", "sft: two"]


def test_a_line_for_each_quarter_of_a_stage(tmp_path: Path) -> None:
    watcher, metrics = plain(), tmp_path / "metrics.jsonl"
    with watcher:
        watcher.begin("sft", metrics, tmp_path / "progress.jsonl")
        start = time.time()
        for step in range(9):
            write(metrics, {"step": step, "max_steps": 8, "loss": step, "time": start + 45 * step})
            watcher.refresh()
        write(metrics, {"eval_loss": 2.0, "step": 8})
        watcher.refresh()
    assert said(watcher) == [
        "sft  2/8  loss 2.000  4:30 left",
        "sft  4/8  loss 4.000  3:00 left",
        "sft  6/8  loss 6.000  1:30 left",
        "sft  8/8  loss 8.000",
    ]


def test_a_resumed_stage_is_reckoned_from_where_it_began_again(tmp_path: Path) -> None:
    """Not by the steps that an earlier attempt made, whose lines stand in the same file."""
    watcher, metrics = plain(), tmp_path / "metrics.jsonl"
    start = time.time()
    write(metrics, {"step": 0, "max_steps": 8, "time": start - 900}, {"step": 7, "max_steps": 8, "time": start - 800})
    with watcher:
        watcher.begin("sft", metrics, tmp_path / "progress.jsonl")
        watcher.refresh()
        assert said(watcher) == []
        write(metrics, {"step": 4, "max_steps": 8, "loss": 4, "time": start + 1})
        watcher.refresh()
        write(metrics, {"step": 6, "max_steps": 8, "loss": 3, "time": start + 61})
        watcher.refresh()
    assert said(watcher) == ["sft  4/8  loss 4.000", "sft  6/8  loss 3.000  1:00 left"]


def test_rows_that_take_long_to_encode_are_told(tmp_path: Path) -> None:
    """Every two seconds, in the file that the parent follows; memory holds no more than a batch."""
    stages = Stages(RunDir(tmp_path))
    stages.execute(stages.ticket("sft", "sft", BASE, LORA))

    def slowly() -> Iterator[dict[str, list[Any]]]:
        for _ in range(3):
            clock[0] += 1.5
            yield {"input_ids": [[1, 2]] * 10, "labels": [[1, 2]] * 10}

    clock = [0.0]
    with mock.patch("time.monotonic", lambda: clock[0]):
        table = stages.jobs["sft"].table("slow", slowly(), 30)
    told = [json.loads(line)["at"] for line in stages.run.stage("sft").progress.read_text().splitlines()]
    assert told[-1] == "encoding rows, 20 of 30"
    assert len(table) == 30 and table[29]["labels"] == [1, 2]


def test_how_much_is_measured_and_how_long_the_rest_takes(tmp_path: Path) -> None:
    watcher, metrics, progress = plain(), tmp_path / "metrics.jsonl", tmp_path / "progress.jsonl"
    now, doing = time.time(), "measuring the base on 2 probes"
    with watcher:
        watcher.begin("sft", metrics, progress)
        write(progress, {"at": doing, "time": now}, {"at": doing, "time": now + 10}, {"at": LOADING})
        parts = ((12, 20), (40, 30), (60, 50), (100, 60))
        write(progress, *({"at": doing, "done": done, "of": 100, "time": now + 10 + s} for done, s in parts))
        watcher.refresh()
    assert said(watcher) == [
        f"sft: {doing}",
        f"sft: {doing}: 40 of 100 items  0:45 left",
    ]


def test_a_live_bar_counts_what_is_measured(tmp_path: Path) -> None:
    watcher, metrics, progress = (
        Watcher(Console(file=StringIO(), width=200, force_terminal=True)),
        tmp_path / "metrics.jsonl",
        tmp_path / "progress.jsonl",
    )
    with watcher:
        watcher.begin("sft", metrics, progress)
        assert watcher.bars is not None
        write(progress, {"at": "measuring the policy", "done": 40, "of": 100})
        write(metrics, {"step": 2, "max_steps": 4})
        watcher.refresh()
        bar = watcher.bars.tasks[0]
        assert (bar.completed, bar.total) == (2, 4), "it trains"
        write(progress, {"at": "measuring the policy", "done": 60, "of": 100})
        watcher.refresh()
        assert (bar.completed, bar.total, bar.fields["figures"]) == (60, 100, "measuring")


def test_what_was_measured_inside_the_stage_stands_beside_the_loss(tmp_path: Path) -> None:
    watcher, metrics, progress = plain(), tmp_path / "metrics.jsonl", tmp_path / "progress.jsonl"
    with watcher:
        watcher.begin("sft", metrics, progress)
        write(progress, {"inside": "step 2: facts -0.050"})
        write(metrics, {"step": 0, "max_steps": 4}, {"step": 4, "max_steps": 4, "loss": 0.5})
        watcher.refresh()
    assert said(watcher) == ["sft  4/4  loss 0.500  [step 2: facts -0.050]"]
