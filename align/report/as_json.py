"""The report as one JSON document: what the page says, with the numbers behind it. docs/report.md has its keys."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from pydantic import BaseModel

from align.report import page
from align.report.chart import Chart, values
from align.report.figures import figures
from align.report.schema import Report

VERSION: Final = 1
"""Raised when a key changes its meaning or goes; a new key does not raise it."""


def render(report: Report) -> str:
    """The document as text, ASCII alone, so that every terminal and pipe takes it."""
    whole = {
        "version": VERSION,
        **plain(page.build(report)),
        "figures": [_figure(chart) for chart in figures(report).all()],
        "measurements": report.forgetting.written() if report.forgetting else None,
    }
    return json.dumps(plain(whole), indent=1, allow_nan=False)


def _figure(chart: Chart) -> dict[str, Any]:
    series = [{"name": mark.name, "points": list(values(mark).items())} for mark in chart.named()]
    return {"title": chart.title, "x": chart.x_name, "series": series}


def plain(value: Any) -> Any:
    """Values of JSON; a number that is not finite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="python"))
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value
