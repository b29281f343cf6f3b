"""The report as one HTML file that needs nothing else: no script, no network, figures inline."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from align.report import page, svg
from align.report.chart import Chart
from align.report.figures import figures
from align.report.heat_map import heat_map
from align.report.schema import Report

TEXT_LIMIT: Final = 1500
"""Characters of a prompt or an answer that are shown."""

CONTROL: Final = {
    code: chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\n\t"
}
"""Characters that would vanish or turn the text around them, and what shows that they were there."""


def render(report: Report) -> str:
    """The whole page. Whatever a model, a recipe or a log wrote is escaped."""
    forgetting = report.forgetting
    shades = heat_map(forgetting) if forgetting and forgetting.probes and forgetting.matrix else ""
    template = environment().get_template("report.html.jinja")
    return visible(template.render(page=page.build(report), figures=figures(report), heat_map=Markup(shades)))


def visible(text: str) -> str:
    """Text with control characters shown, and with what UTF-8 cannot hold replaced."""
    return text.encode("utf-8", "replace").decode("utf-8").translate(CONTROL)


def clipped(text: str, limit: int = TEXT_LIMIT) -> str:
    """A long text cut, saying how much was cut."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


@lru_cache
def environment(*folders: Path) -> Environment:
    """Of the pages of this package, and of others that use its parts; a run that writes its page again and again
    compiles its templates once.

    Args:
        folders: hold templates of the other page.
    """
    found = Environment(
        loader=FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=select_autoescape(["html.jinja"], default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(prose=_prose, number=_number, clipped=clipped, svg=_svg, plain=_typographic)
    return found


def _typographic(text: str) -> str:
    """A real minus before digits, a real times sign before a ratio."""
    return re.sub(r"(?<![\w)])-(?=[\d.])", "−", re.sub(r"(?<!\w)x(?=\d)", "×", text))


def _number(text: str) -> str:
    """The same for a cell of a table, which never breaks."""
    return _typographic(text).replace(" ", "\u00a0")


def _prose(text: str) -> Markup:
    """A sentence with `code` in backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _svg(chart: Chart) -> Markup:
    """A figure, drawn by this package, which escapes its texts."""
    return Markup(svg.draw(chart))
