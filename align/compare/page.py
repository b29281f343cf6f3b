"""Runs side by side as one HTML file that needs nothing else, in the design of the report."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from align.compare import chart, words
from align.compare.table import RunsCompared
from align.report import html, numbers


def render(found: RunsCompared) -> str:
    """The whole page. Whatever a recipe or a folder is called is escaped."""
    template = html.environment(Path(__file__).parent).get_template("compare.html.jinja")
    drawn: list[Markup] = [chart.draw(found, found.tables[0], at) for at in range(1, len(found.runs))]
    return html.visible(template.render(found=found, charts=drawn, words=words, numbers=numbers))
