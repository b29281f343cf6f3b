"""The report as compact Markdown: the same content without figures, for a pull request or a terminal."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from align.report import page
from align.report.html import clipped, visible
from align.report.schema import Report

TEXT_LIMIT: Final = 400


def render(report: Report) -> str:
    """The whole report. Whatever a model wrote stands in code spans, where no Markdown or HTML has a meaning."""
    text = _environment().get_template("report.md.jinja").render(page=page.build(report))
    return visible(re.sub(r"\n{3,}", "\n\n", text))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(code=_code, code_cell=_code_cell, cell=_cell, prose=_prose, fence=_fence)
    return environment


def _code(text: str) -> str:
    """A code span on one line, with a fence longer than any run of backticks inside."""
    line = re.sub(r"\s*\n\s*", " ⏎ ", clipped(str(text), TEXT_LIMIT))
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line or line != line.strip() or not line else f"{fence}{line}{fence}"


def _code_cell(text: str) -> str:
    """A code span inside a table, where a bar would end the cell."""
    return _code(text).replace("|", "\\|")


def _cell(text: str) -> str:
    """A text inside a table."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", _one_line(text))


def _prose(text: str) -> str:
    """A sentence of align, in which `code` keeps its meaning and HTML has none."""
    return _one_line(text)


def _one_line(text: str) -> str:
    return " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")


def _fence(text: str) -> str:
    """A block of code."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}\n{text.rstrip()}\n{fence}"
