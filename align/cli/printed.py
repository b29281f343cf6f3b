"""What several commands print, and where: results to stdout, all else to stderr."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from align.errors import AlignError
from align.runner.lines import line


def errors() -> Console:
    """Where notes, warnings and errors are printed."""
    return Console(stderr=True)


def found(notes: Iterable[str], warnings: Mapping[str, Iterable[str]]) -> None:
    """What a check found that is no error."""
    for note in notes:
        errors().print(line(note, "note"))
    for id, texts in warnings.items():
        for text in texts:
            errors().print(line(f"{id}: {text}", "warning"))


def result(run_dir: Path) -> None:
    """The matrix, the verdict and where the report is."""
    from align.report import records, terminal

    console = Console()
    report = records.load(run_dir)
    if report.forgetting is not None:
        console.print(terminal.matrix_table(report))
        console.print(line(terminal.verdict_line(report)))
    print(f"report: {near(run_dir / 'report.html')}")


def near(path: Path) -> str:
    """A path, from the current folder on if it is inside."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def refuse_unwritable(file: Path | None) -> None:
    """Raises AlignError if a file that an option names cannot be written; before the work, not after it."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise AlignError(f"'{file}' cannot be written", "choose a file in an existing folder")
