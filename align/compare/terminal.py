"""Runs side by side for the terminal, at any width, with or without colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from align.compare import words
from align.compare.table import Row, RunsCompared
from align.compare.table import Table as Compared
from align.report import numbers
from align.report.terminal import STYLES

SCORE_WIDTH: Final = 15
CHANGE_WIDTH: Final = 9
INTERVAL_WIDTH: Final = 19
"""Columns of the terminal: `0.953 UNCLEAR  `, ` -0.468  `, ` [-0.485, -0.450]`."""

TONES: Final = {"better": "green", "worse": "bold red", None: ""}


@dataclass(frozen=True)
class Comparison:
    """A rich renderable: the scores after each stage, what training took, and the settings that differ."""

    found: RunsCompared

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in self.found.tables:
            yield self._scores(table, options)
            yield Text()
        for name, why in self.found.left_out.items():
            yield Text(f"{name} is not compared: {why}", style="dim")
        yield from self._training(options)
        yield from self._settings(options)
        yield Text(words.how(self.found), style="dim")

    def _scores(self, compared: Compared, options: ConsoleOptions) -> Table:
        """The first run, then every other with its difference; the interval where there is room."""
        first, *others = self.found.runs
        names = max(cell_len(row.name) for row in [*compared.rows, *([compared.mean] if compared.mean else [])])
        room = options.max_width - names - SCORE_WIDTH - len(others) * (SCORE_WIDTH + CHANGE_WIDTH)
        intervals = room >= len(others) * INTERVAL_WIDTH
        table = _empty(words.title(self.found, compared), options)
        table.add_column(Text(first.label), no_wrap=True, overflow="ellipsis")
        for other in others:
            table.add_column(Text(other.label), no_wrap=True, overflow="ellipsis")
            table.add_column("change", justify="right", no_wrap=True)
            if intervals:
                table.add_column("95 % interval", no_wrap=True)
        for heading, rows in words.groups(compared):
            table.add_row(Text(heading, style="dim italic"))
            for row in rows:
                table.add_row(Text(row.name), *_cells(row, intervals=intervals))
        if compared.mean:
            table.add_section()
            table.add_row(Text(compared.mean.name, style="bold"), *_cells(compared.mean, intervals=intervals))
        return table

    def _training(self, options: ConsoleOptions) -> Iterator[Table | Text]:
        for stage, rows in words.training(self.found):
            yield self._plain(f"training of {stage}", rows, options)
            yield Text()

    def _settings(self, options: ConsoleOptions) -> Iterator[Table | Text]:
        rows = list(words.settings(self.found))
        yield self._plain("settings that differ", rows, options) if rows else Text("The settings are the same.")
        yield Text()

    def _plain(self, title: str, rows: Sequence[tuple[str, Sequence[str]]], options: ConsoleOptions) -> Table:
        table = _empty(title, options)
        for run in self.found.runs:
            table.add_column(Text(run.label), overflow="fold")
        for label, texts in rows:
            table.add_row(Text(label), *(Text(text) for text in texts))
        return table


def _empty(title: str, options: ConsoleOptions) -> Table:
    lines = box.ASCII_DOUBLE_HEAD if options.ascii_only else box.SIMPLE_HEAD
    table = Table(box=lines, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(Text(title), no_wrap=True, overflow="ellipsis")
    return table


def _cells(row: Row, *, intervals: bool) -> Iterator[Text]:
    for at, value in enumerate(row.values):
        text = Text(words.score(row, at))
        if value.verdict:
            text.append(f" {value.verdict}", style=STYLES[value.verdict])
        yield text
        if at:
            change = row.differences[at - 1]
            yield Text(numbers.change(change), style=TONES[change.direction])
            if intervals:
                yield Text(numbers.interval(change), style=TONES[change.direction] or "dim")
