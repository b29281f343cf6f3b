"""Small curves of what was measured inside a stage. There may be hundreds on a page, so that they are written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from align.report.svg import clip

WIDTH, HEIGHT = 210, 112
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 24, 18  # margins
TEXT: Final = 'font-family="var(--sans)" font-size="10"'


@dataclass(frozen=True)
class Curve:
    """One panel.

    Attributes:
        points: (step, value); a value of None is drawn as a gap.
        limit: where the dashed line stands, None for none.
        broken: the steps at which the limit was surely broken.
        kept: the step whose weights were handed on, where that is not the last.
    """

    title: str
    points: Sequence[tuple[int, float | None]]
    limit: float | None
    broken: frozenset[int]
    kept: int | None
    decimals: int = 3


def draw(curve: Curve) -> str:
    """The panel as inline SVG, in the colours of the page."""
    known = [(step, value) for step, value in curve.points if value is not None]
    values = [value for _, value in known] + ([curve.limit] if curve.limit is not None else [])
    last = max(curve.points[-1][0], 1)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low) * 0.08 or max(abs(high), 1.0) * 0.02
    low, high = low - room, high + room

    def x(step: int) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 1)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" style="width: 100%; max-width: {WIDTH * 4 / 3:.0f}px">',
        f'<text x="0" y="11" {TEXT} font-weight="bold" fill="var(--ink)">{escape(clip(curve.title, 30))}</text>',
        _line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "line"),
        _text(LEFT, HEIGHT - 5, "0", "middle"),
        _text(WIDTH - RIGHT, HEIGHT - 5, str(last), "end"),
    ]
    for value in dict.fromkeys([max(values), min(values)] if values else []):
        parts.append(_text(LEFT - 4, y(value) + 3, f"{value:.{curve.decimals}f}", "end"))
    if curve.limit is not None:
        parts.append(_line(LEFT, y(curve.limit), WIDTH - RIGHT, y(curve.limit), "orange", ' stroke-dasharray="4 3"'))
    if curve.kept is not None:
        parts.append(_line(x(curve.kept), TOP, x(curve.kept), HEIGHT - BOTTOM, "muted", ' stroke-dasharray="1 3"'))
    for run in _runs(curve.points):
        path = " ".join(f"{x(step)},{y(value)}" for step, value in run)
        parts.append(f'<polyline points="{path}" fill="none" stroke="var(--blue)" stroke-width="1.6"/>')
    for step, value in known:
        colour, size = ("orange", 3) if step in curve.broken else ("blue", 2)
        parts.append(f'<circle cx="{x(step)}" cy="{y(value)}" r="{size}" fill="var(--{colour})"/>')
    return "".join([*parts, "</svg>"])


def _runs(points: Sequence[tuple[int, float | None]]) -> list[list[tuple[int, float]]]:
    """The points between gaps."""
    found: list[list[tuple[int, float]]] = [[]]
    for step, value in points:
        if value is None:
            found.append([])
        else:
            found[-1].append((step, value))
    return [run for run in found if len(run) > 1]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="var(--{colour})"{more}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" {TEXT} text-anchor="{anchor}" fill="var(--muted)">{text}</text>'
