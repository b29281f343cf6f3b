"""The forgetting matrix for the terminal, at any width, with or without colour. Imports rich and nothing heavier."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from align.forgetting.table import Cell, Effect, Forgetting, ProbeEntry
from align.report import findings, numbers
from align.report.distance_page import in_a_line
from align.report.schema import Report
from align.report.sentence import notes, nothing, tolerated, verdict_line

__all__ = ["matrix_table", "verdict_line"]

STYLES: Final = {"FORGOT": "bold red", "UNCLEAR": "yellow", "OK": "green"}
MARKS: Final = {"FORGOT": "▼", "UNCLEAR": "?", "OK": "·"}
ASCII_MARKS: Final = {"FORGOT": "!", "UNCLEAR": "?", "OK": "."}

BASE_WIDTH: Final = 9
NUMBERS_WIDTH: Final = 14
WORD_WIDTH: Final = 8
MARK_WIDTH: Final = 2
"""Columns of the terminal, the two between columns of the table among them: `  0.930 +0.905`, ` UNCLEAR`, ` ?`."""

MEANS: Final = {"all": "mean of skills", "replayed": "  replayed", "not_replayed": "  not replayed"}


def matrix_table(report: Report) -> "MatrixTable":
    """The matrix: capabilities as rows, the base and every stage as columns, and one line that explains it."""
    return MatrixTable(report)


@dataclass(frozen=True)
class MatrixTable:
    """A rich renderable that fits its columns to the console: verdicts in words where there is room, else as marks."""

    report: Report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        forgetting = self.report.forgetting
        if forgetting is None or not forgetting.matrix:
            yield Text(f"{nothing(self.report)}.")
            return
        stages = [name for name in forgetting.stages if name != findings.BASE and name in forgetting.matrix]
        titles = [group.title for group in findings.groups(forgetting)]
        room = (
            options.max_width - max((cell_len(text) for text in [*forgetting.probes, *titles]), default=0) - BASE_WIDTH
        )
        words = room >= len(stages) * (NUMBERS_WIDTH + WORD_WIDTH)
        per_table = max(1, room // (NUMBERS_WIDTH + (WORD_WIDTH if words else MARK_WIDTH)))
        marks = {} if words else ASCII_MARKS if options.ascii_only else MARKS
        for first in range(0, max(1, len(stages)), per_table):
            if first:
                yield Text()
            yield _table(forgetting, stages[first : first + per_table], marks, ascii_only=options.ascii_only)
        if any(probe.limit is not None for probe in forgetting.probes.values()):
            yield _legend(forgetting, marks)
        distance = in_a_line(forgetting)
        if distance:
            yield Text(distance)
        for note in notes(forgetting):
            yield Text(note, style="dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(40, options.max_width), options.max_width)


def _table(forgetting: Forgetting, stages: list[str], marks: dict[str, str], *, ascii_only: bool) -> Table:
    lines = box.ASCII_DOUBLE_HEAD if ascii_only else box.SIMPLE_HEAD
    table = Table(box=lines, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("capability", no_wrap=True, overflow="ellipsis")
    table.add_column("base", justify="right", no_wrap=True)
    for stage in stages:
        parent = forgetting.parent.get(stage, findings.BASE)
        head = stage if parent == findings.BASE else f"{stage} (on {parent})"
        table.add_column(Text(_printable(head, ascii_only=ascii_only)), no_wrap=True, overflow="ellipsis")
    for group in findings.groups(forgetting):
        table.add_row(Text(group.title, style="dim italic"))
        for name in group.probes:
            rows = [forgetting.matrix.get(stage, {}).get(name) for stage in [findings.BASE, *stages]]
            table.add_row(Text(_printable(name, ascii_only=ascii_only)), *_cells(rows, forgetting.probes[name], marks))
    table.add_section()
    for key, title in MEANS.items():
        means = [forgetting.mean.get(stage, {}).get(key) for stage in [findings.BASE, *stages]]
        if any(means):
            table.add_row(Text(title, style="bold" if key == "all" else ""), *_cells(means, ProbeEntry(), marks))
    return table


def _cells(row: list[Cell | None], probe: ProbeEntry, marks: dict[str, str]) -> Iterator[Text]:
    """The base's score, then score, change and verdict of every stage."""
    for number, cell in enumerate(row):
        text = Text(numbers.score(cell.score, probe) if cell else "-")
        if cell and number:
            text.append(f" {_change(cell):>6}", style=STYLES.get(cell.verdict or "", "") or _tone(cell, probe))
            text.append(f" {_mark(cell, marks)}".rstrip(), style=STYLES.get(cell.verdict or "", ""))
        yield text


def _change(cell: Cell) -> str:
    return numbers.change(cell) if cell.ratio is None or cell.ratio < 100 else ">x100"


def _mark(cell: Cell, marks: dict[str, str]) -> str:
    word = numbers.verdict(cell)
    return marks.get(word, word)


def _tone(effect: Effect, probe: ProbeEntry) -> str:
    return "green" if findings.direction(effect, probe) == "better" else ""


def _legend(forgetting: Forgetting, marks: dict[str, str]) -> Text:
    limit = tolerated(forgetting).removeprefix("the ").replace("drop of", "drop").replace("ratio of", "ratio")
    legend = Text(f"{limit.capitalize()}:  ", style="dim")
    for word, meaning in (("FORGOT", "surely past it  "), ("UNCLEAR", "too few items  "), ("OK", "surely within")):
        legend.append(f"{marks[word]} {word.lower()}" if marks else word, style=STYLES[word])
        legend.append(f" {meaning}")
    return legend


def _printable(text: str, *, ascii_only: bool) -> str:
    """A name as this terminal can show it."""
    return text.encode("ascii", "backslashreplace").decode() if ascii_only else text
