"""Reads a run folder and tells what the model gained and what it forgot. Nothing pushes into it."""

import os
from pathlib import Path

__all__ = ["write"]


def write(run_dir: str | Path) -> tuple[Path, Path]:
    """Write report.html and report.md into the run folder and return their paths.

    Each file appears whole or not at all. Raises AlignError where the folder is no run or a file of it is damaged.
    """
    # jinja2 and matplotlib come with these: whoever only wants the records or the table does not pay for them
    from align.report import html, markdown
    from align.report.records import load

    report = load(run_dir)
    return (
        _replace(Path(run_dir) / "report.html", html.render(report)),
        _replace(Path(run_dir) / "report.md", markdown.render(report)),
    )


def _replace(path: Path, text: str) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
