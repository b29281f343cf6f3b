"""Reads a run folder and tells what the model gained and what it forgot. Nothing pushes into it."""

import re
from pathlib import Path

__all__ = ["break_off", "write"]


def write(run_dir: str | Path, *, live: bool = False) -> tuple[Path, Path]:
    """Write report.html and report.md into the run folder and return their paths.

    Each file appears whole or not at all. A page of a run that is under way (`live`) says so and loads itself again.

    Raises:
        AlignError: the folder is no run, or a file of it is damaged.
    """
    # jinja2 comes with these: whoever only wants the records or the table does not pay for it
    from align.report import html, markdown
    from align.report.records import load
    from align.run_folder.files import write_text

    report = load(run_dir, live=live)
    page, text = Path(run_dir) / "report.html", Path(run_dir) / "report.md"
    write_text(page, html.render(report))
    write_text(text, markdown.render(report))
    return page, text


def break_off(run_dir: str | Path) -> None:
    """Make the page of a run whose process is gone say so and load itself no more: the least that its child can do."""
    from align.run_folder.files import write_text

    page = Path(run_dir) / "report.html"
    try:
        text = page.read_text(encoding="utf-8")
    except OSError:
        return
    ended = re.sub(r'<meta http-equiv="refresh"[^>]*>\n', "", text, count=1)
    if ended != text:
        ended = ended.replace('<span class="word">UNDER WAY</span>', '<span class="word">BROKEN OFF</span>', 1)
        ended = re.sub(r"<b>Under way:</b>", "<b>Broken off at:</b>", ended, count=1)
        write_text(page, re.sub(r'<span class="again">[^<]*</span>', "", ended, count=1))
