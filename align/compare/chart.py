"""One run against the first as a drawing: the difference at each probe with its 95 % interval. SVG written here, since
importing a plotting library takes longer than all the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

from align.compare import words
from align.compare.table import Difference, Row, RunsCompared, Table
from align.report import numbers
from align.report.svg import clip

NAMES: Final = 170
AXIS: Final = 330
FIGURES: Final = 60
LINE: Final = 21
"""Pixels of the columns, and of a row."""
COLOURS: Final = {"better": "var(--green)", "worse": "var(--orange)", None: "var(--muted)"}
"""Of a difference that is sure, or not."""
MUTED: Final = 'style="fill: var(--muted)"'


@dataclass(frozen=True)
class _Scale:
    """From a difference to pixels."""

    low: float
    high: float

    @classmethod
    def of(cls, rows: list[tuple[Row, Difference]]) -> _Scale:
        """One that holds every interval, and nothing."""
        ends = [end for _, change in rows if change.ratio is None for end in change.ci95 or () if end is not None]
        low, high = min([-0.05, *ends]), max([0.05, *ends])
        margin = 0.04 * (high - low)
        return cls(low - margin, high + margin)

    def at(self, value: float) -> float:
        return round(NAMES + (value - self.low) / (self.high - self.low) * AXIS, 1)


def draw(found: RunsCompared, table: Table, at: int) -> Markup:
    """The run with the number `at` against the first: better to the right; a ratio of perplexities as text."""
    groups = list(words.groups(table)) + ([("", [table.mean])] if table.mean else [])
    scale = _Scale.of([(row, row.differences[at - 1]) for _, rows in groups for row in rows])
    parts, y = list[Markup](), 2.0 * LINE
    for heading, rows in groups:
        if heading:
            parts.append(_text(0, y, heading, f'font-size="11" {MUTED}'))
        y += LINE if heading else 0.0
        for row in rows:
            parts.extend(_row(row, row.differences[at - 1], y, scale, bold=not heading))
            y += LINE
        y += 0.3 * LINE
    height, zero = round(y + 2), scale.at(0)
    first, other = found.runs[0].label, found.runs[at].label
    ends = (
        _text(NAMES, LINE, f"◀ {clip(first, 20)} better", 'font-weight="600"'),
        _text(NAMES + AXIS + FIGURES, LINE, f"{clip(other, 20)} better ▶", 'font-weight="600" text-anchor="end"'),
    )
    body = Markup("").join([*ends, _line(zero, zero, 1.4 * LINE, y, "var(--ink)", 1), *parts])
    label = f"{words.title(found, table)}: {other} against {first}"
    return Markup(
        '<svg viewBox="0 0 {w} {h}" role="img" aria-label="{label}" style="width: 100%; max-width: {w}px" '
        'font-family="var(--sans)" font-size="12.5" fill="var(--ink)"><g transform="translate(6 0)">{body}</g></svg>'
    ).format(w=NAMES + AXIS + FIGURES + 12, h=height, label=label, body=body)


def _row(row: Row, change: Difference, y: float, scale: _Scale, *, bold: bool) -> Iterator[Markup]:
    colour, weight = COLOURS[change.direction], ' font-weight="600"' if bold else ""
    yield _text(0 if bold else 8, y, clip(row.name, 26), weight.strip())
    end = f'text-anchor="end" style="fill: {colour}"{weight}'
    yield _text(NAMES + AXIS + FIGURES, y, numbers.change(change).replace("-", "−").replace("x", "×"), end)
    if change.ratio is not None or change.ci95 is None or change.delta is None:
        left = scale.at(0) - NAMES > AXIS / 2  # where there is more room
        side = 'text-anchor="end"' if left else ""
        yield _text(scale.at(0) + (-8 if left else 8), y, "perplexity, as a ratio", f'font-size="11" {MUTED} {side}')
        return
    low, high = change.ci95
    if low is not None and high is not None:
        yield _line(scale.at(low), scale.at(high), y - 4, y - 4, colour, 4, 'stroke-opacity="0.45"')
    yield Markup('<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>').format(
        x=scale.at(change.delta), y=y - 4, colour=colour
    )


def _line(x1: float, x2: float, y1: float, y2: float, colour: str, width: int, rest: str = "") -> Markup:
    return Markup(
        '<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}" stroke-linecap="round" {}/>'
    ).format(x1, x2, y1, y2, colour, width, Markup(rest))


def _text(x: float, y: float, text: str, rest: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" {}>{}</text>').format(x, y, Markup(rest), escape(text))
