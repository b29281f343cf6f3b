"""What a person sees while a run is under way: live bars on a terminal, plain lines elsewhere. On stderr."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from align.run_folder.messages import Told
from align.run_folder.records import LOADING
from align.runner.lines import line

PLAIN_EVERY = 0.25  # share of a stage between two plain lines


class Watcher:
    """Follows metrics.jsonl of the stage at work. A context manager; `refresh` is called while waiting."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars: Progress | None = None
        self.task: TaskID | None = None
        self.stage, self.path, self.offset = "", Path(), 0
        self.state: dict[str, Any] = {}
        self.said, self.began, self.since = 0.0, 0.0, 0.0
        self.progress, self.read = Path(), 0
        self.inside = ""  # the last measurement inside the stage, in short
        self.part: tuple[int, int] | None = None  # how much of how much is measured, while something is
        self.measured = 0.0  # the share of it when last said
        self.doing: str | None = None  # what was told last
        self.told: set[str] = set()  # warnings of the stage that were shown already
        self.first: dict[str, Any] = {}  # the entry written when training began: its time, and the step resumed from

    def __enter__(self) -> Watcher:
        if self.console.is_terminal:
            self.bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()

    def say(self, text: str, word: str = "") -> None:
        """A line that stays, shown as it is; `word` stands before it in colour."""
        self.console.print(line(text, word))

    def begin(self, stage: str, metrics: Path, progress: Path) -> None:
        """Follow another stage."""
        self.end()
        self.progress, self.read, self.told = progress, 0, set()
        self.stage, self.path, self.offset, self.state, self.said = stage, metrics, 0, {}, 0.0
        self.began, self.inside, self.part, self.doing = time.time(), "", None, None
        if self.bars is not None:
            self.task = self.bars.add_task(stage, total=None, figures=LOADING)

    def end(self) -> None:
        """The stage is over: its bar goes."""
        if self.bars is not None and self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None

    def refresh(self) -> None:
        """Read what was written since the last call, and show it."""
        entries, self.read = _new(self.progress, self.read)
        for entry in entries:
            self._say(Told.model_validate(entry))
        entries, self.offset = _new(self.path, self.offset)
        for entry in entries:
            if entry.get("time", 0) < self.began - 1:
                continue  # of an earlier attempt
            if "alarm" in entry:
                self.say(f"{self.stage}: {entry['alarm']}", "alarm")
                continue
            self.first = self.first if self.state else entry
            self.state |= entry
            self.part = None
        step, total = self.state.get("step"), self.state.get("max_steps")
        if step is None or not total:
            return
        if self.bars is not None and self.task is not None:
            figures = "measuring" if step >= total or self.part else self._figures()
            done, of = self.part or (step, total)
            self.bars.update(self.task, completed=done, total=of, figures=figures)
        elif step / total - self.said >= PLAIN_EVERY or (step >= total and self.said < 1):
            self.said = step / total
            self.say(f"{self.stage}  {step}/{total}  {self._figures()}{self._left(step, total)}")

    def _say(self, told: Told) -> None:
        """What the stage tells of itself beside its figures."""
        if told.warning is not None:
            self.warn(self.stage, told.warning)
            return
        if told.said is not None:
            self.say(f"{self.stage}: {told.said}")
            return
        if told.inside is not None:
            self.inside = told.inside
            return
        self.part = (told.done or 0, told.of) if told.of else None
        if self.bars is not None and self.task is not None:
            done, of = self.part or (0, None)
            self.bars.update(self.task, figures=told.at, completed=done, total=of)
        elif self.part is not None:
            self._say_part(told, *self.part)
        elif told.at != LOADING:
            self.measured, self.since = 0.0, told.time
            if told.at != self.doing:
                self.say(f"{self.stage}: {told.at}")
        self.doing = told.at

    def _say_part(self, told: Told, done: int, of: int) -> None:
        """How much of a measurement is done, once in a while, and how long the rest will take at that pace."""
        share = done / of
        if share < 1 and share - self.measured >= PLAIN_EVERY:
            self.measured = share
            left = _clock((told.time - self.since) * (1 / share - 1))
            self.say(f"{self.stage}: {told.at}: {done} of {of} items{left}")

    def warn(self, stage: str, text: str) -> None:
        """A warning about a stage, once."""
        if text not in self.told:
            self.told.add(text)
            self.say(f"{stage}: {text}", "warning")

    def _figures(self) -> str:
        words = []
        if "loss" in self.state:
            words.append(f"loss {self.state['loss']:.3f}")
        if "rewards/margins" in self.state:
            words.append(f"margin {self.state['rewards/margins']:.2f}")
        if "score" in self.state:
            words.append(f"score {self.state['score']:.2f}")
        if self.state.get("kl") is not None:
            words.append(f"KL {self.state['kl']:.2f}")
        if "eval_loss" in self.state:
            words.append(f"eval {self.state['eval_loss']:.3f}")
        if self.state.get("tokens_per_second"):
            words.append(f"{self.state['tokens_per_second']:,.0f} tok/s")
        return "  ".join([*words, *([f"[{self.inside}]"] if self.inside else [])])

    def _left(self, step: int, total: int) -> str:
        done = step - self.first["step"]
        if done <= 0 or step >= total:
            return ""
        return _clock((self.state["time"] - self.first["time"]) / done * (total - step))


def _clock(seconds: float) -> str:
    return f"  {int(seconds // 60)}:{int(seconds % 60):02d} left"


def _new(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a file after `offset`, and where they end; a line that is no JSON is skipped."""
    try:
        with path.open(encoding="utf-8") as file:
            file.seek(offset)
            text = file.read()
    except (FileNotFoundError, IsADirectoryError):
        return [], offset
    whole = text[: text.rfind("\n") + 1]
    found = []
    for written in whole.splitlines():
        try:
            found.append(json.loads(written))
        except ValueError:
            continue
    return found, offset + len(whole.encode())
