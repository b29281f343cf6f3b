"""Draws a figure as SVG for a page. Colours are words that the page resolves (`var(--blue)`), so that one figure suits
a light page, a dark page and print; the reader's own fonts write its texts."""

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import escape

from align.report import curves, ticks
from align.report.chart import Band, Chart, Curve, Dots, Point, Rule, Span, Stairs

PALETTE: Final = {
    "ink": "#101112", "muted": "#707172", "line": "#c0c1c2", "blue": "#0072b2", "orange": "#d55e00", "green": "#009e73",
    "purple": "#aa4499", "heat": "#0072b2",
}  # fmt: skip
"""The colours of a figure that stands alone, outside a page."""

MAX_POINTS: Final = 240
CHARACTER: Final = 6.4
"""Pixels that a digit of an axis takes at most."""


@dataclass(frozen=True)
class Frame:
    """Where the axes lie in the figure, in pixels, and which values stand at their ends."""

    left: float
    right: float
    top: float
    bottom: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log_y: bool

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left)

    def y(self, value: float) -> float:
        value = math.log10(value) if self.log_y else value
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - self.top)

    def at(self, point: Point) -> tuple[float, float]:
        return self.x(point[0]), self.y(point[1])


def draw(chart: Chart) -> str:
    """The figure as one SVG element; its texts are escaped."""
    frame, beside = _frame(chart)
    parts = [*_axes(chart, frame, beside), *(_mark(mark, frame) for mark in chart.marks), *_heads(chart, frame)]
    return element(chart.title, chart.size[0], chart.size[1], parts)


def alone(drawn: str) -> str:
    """A drawing of a page as a file of its own, on white."""
    drawn = drawn.replace("var(--sans)", "sans-serif")
    for name, value in PALETTE.items():
        drawn = drawn.replace(f"var(--{name})", value)
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return re.sub(r"<svg([^>]*)>", rf'<svg xmlns="http://www.w3.org/2000/svg"\1>{ground}', drawn, count=1) + "\n"


def element(title: str, width: float, height: float, parts: Iterable[str]) -> str:
    """An SVG element with a name for those who do not see it."""
    style = f"width: 100%; max-width: {width:g}px"
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" style="{style}">'
    return "".join([head, *parts, "</svg>"])


def text(x: float, y: float, words: str, colour: str, size: float, *, weight: int = 400, anchor: str = "start") -> str:
    """One text; `y` is its base line."""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    style = f"font: {weight} {size:g}px var(--sans); fill: var(--{colour})"
    return f'<text x="{x:.1f}" y="{y:.1f}"{place} style="{style}">{escape(words)}</text>'


def thinned(points: curves.Points) -> tuple[Point, ...]:
    """At most `MAX_POINTS` points: the means of stretches of equal length."""
    if len(points) <= MAX_POINTS:
        return tuple(points)
    edges = [round(k * len(points) / MAX_POINTS) for k in range(MAX_POINTS + 1)]
    stretches = [points[a:b] for a, b in itertools.pairwise(edges)]
    return tuple((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches)


def smooth(values: Sequence[float]) -> list[float]:
    """A centred moving mean over a twelfth of the curve; narrower at the start, where a loss is steep."""
    reach = max(1, len(values) // 24)
    spans = [values[at - min(reach, at) : at + min(reach, at) + 1] for at in range(len(values))]
    return [sum(span) / len(span) for span in spans]


def clip(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"


def _frame(chart: Chart) -> tuple[Frame, list[tuple[float, str]]]:
    """The frame, and the numbers beside its vertical axis, for which it leaves room."""
    points = list(chart.points()) or [(0.0, 0.0)]
    x_low, x_high = _ends([x for x, _ in points], 0.02, whole=chart.whole_x)
    values = [y for _, y in points]
    if chart.log_y:
        beside = ticks.logarithmic(min(values), max(values))
        y_low, y_high = _ends([math.log10(value) for value in values], 0.06)
    else:
        y_low, y_high = chart.y_ends or _ends(values, 0.06)
        beside = ticks.linear(y_low, y_high, 2 if chart.small else 4, whole=chart.whole_y)
    told = ticks.texts(beside)
    width, height = chart.size
    left = 10 + CHARACTER * max((len(words) for words in told), default=1) * (0.9 if chart.small else 1)
    left += 14 if chart.y_label else 0
    below = 40 if chart.x_label else 22
    top = 24 if chart.heads else 8
    frame = Frame(left, width - 10, top, height - below, x_low, x_high, y_low, y_high, chart.log_y)
    return frame, list(zip(beside, told, strict=True))


def _ends(values: Sequence[float], margin: float, *, whole: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # level, but for the rounding of means
        half = 0.5 if whole else abs(low) * 0.05 or 0.5
        return low - half, high + half
    return low - margin * (high - low), high + margin * (high - low)


def _axes(chart: Chart, frame: Frame, beside: Sequence[tuple[float, str]]) -> Iterable[str]:
    size = 10 if chart.small else 11.5
    for value, words in beside:
        y = frame.y(value)
        if frame.top - 1 <= y <= frame.bottom + 1:
            yield _line(frame.left, y, frame.right, y, "line", 0.7)
            yield text(frame.left - 6, y + size * 0.35, words, "muted", size, anchor="end")
    yield _line(frame.left, frame.bottom, frame.right, frame.bottom, "muted", 0.8)
    below = ticks.linear(frame.x_low, frame.x_high, 3 if chart.small else 6, whole=chart.whole_x)
    below = [value for value in below if frame.x_low <= value <= frame.x_high]
    if not below:  # a single step with a fraction of room on both sides
        below = [float(round((frame.x_low + frame.x_high) / 2))] if chart.whole_x else []
    for value, words in zip(below, ticks.texts(below), strict=True):
        x = frame.x(value)
        yield _line(x, frame.bottom, x, frame.bottom + 3, "muted", 0.8)
        yield text(x, frame.bottom + 6 + size, words, "muted", size, anchor="middle")
    if chart.x_label:
        middle = (frame.left + frame.right) / 2
        yield text(middle, frame.bottom + 35, chart.x_label, "muted", 12, anchor="middle")
    if chart.y_label:
        middle = (frame.top + frame.bottom) / 2
        words = text(0, 0, chart.y_label, "muted", 12, anchor="middle")
        yield f'<g transform="translate(11 {middle:.1f}) rotate(-90)">{words}</g>'


def _heads(chart: Chart, frame: Frame) -> Iterable[str]:
    """The names of the curves above the axes, one after the other."""
    size = 11 if chart.small else 12
    if chart.heads:
        spans = "".join(
            f'<tspan style="fill: var(--{colour})">{escape(words)}   </tspan>' for words, colour in chart.heads
        )
        x = 2.0 if chart.small else frame.left
        yield f'<text x="{x:.1f}" y="13" xml:space="preserve" style="font: 600 {size}px var(--sans)">{spans}</text>'


def _mark(mark: object, frame: Frame) -> str:
    match mark:
        case Curve():
            return _curve(mark, frame)
        case Dots():
            return _dots(mark, frame)
        case Band():
            outline = [frame.at(point) for point in (*mark.low, *reversed(mark.high))]
            return f'<path d="{_path(outline)}Z" style="fill: var(--{mark.colour}); fill-opacity: 0.15"/>'
        case Stairs():
            return _stairs(mark, frame)
        case Rule():
            return _rule(mark, frame)
        case Span():
            x, width = frame.x(mark.low), frame.x(mark.high) - frame.x(mark.low)
            style = f"fill: var(--{mark.colour}); fill-opacity: 0.1"
            height = frame.bottom - frame.top
            box = f'<rect x="{x:.1f}" y="{frame.top:.1f}" width="{width:.1f}" height="{height:.1f}" style="{style}"/>'
            return box + text(x + width - 5, frame.top + 13, mark.text, mark.colour, 11, anchor="end")
    raise TypeError(f"{type(mark).__name__} is no mark of a figure")


def _curve(curve: Curve, frame: Frame) -> str:
    if not curve.points:
        return ""
    places = [frame.at(point) for point in curve.points]
    dash = "stroke-dasharray: 5 4; " if curve.dashed else ""
    opacity = f"; stroke-opacity: {curve.opacity:g}" if curve.opacity < 1 else ""
    style = f"{dash}stroke: var(--{curve.colour}); stroke-width: {curve.width:g}; fill: none{opacity}"
    drawn = f'<path d="{_path(places)}" style="{style}; stroke-linejoin: round; stroke-linecap: round"/>'
    if curve.dots or len(places) == 1:
        drawn += "".join(_disc(place, curve.dots or 3.5, curve.colour) for place in places)
    return drawn


def _dots(dots: Dots, frame: Frame) -> str:
    drawn = []
    shades = dots.shades or tuple(1.0 for _ in dots.points)
    for point, radius, shade in zip(dots.points, dots.radii, shades, strict=True):
        x, y = frame.at(point)
        if dots.shape == "ring":
            style = f"fill: none; stroke: var(--{dots.colour}); stroke-width: 1.6"
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" style="{style}"/>')
        elif dots.shape == "down":
            corners = f"M{x - radius:.1f} {y - radius:.1f}H{x + radius:.1f}L{x:.1f} {y + radius:.1f}Z"
            drawn.append(f'<path d="{corners}" style="fill: var(--{dots.colour})"/>')
        else:
            drawn.append(_disc((x, y), radius, dots.colour, shade))
    for (x, y), label in _beside([frame.at(point) for point in dots.points], dots.labels):
        right = x > (frame.left + frame.right) * 0.72
        side = -9 if right else 9
        drawn.append(text(x + side, y - 8, label, "ink", 12, weight=600, anchor="end" if right else "start"))
    return "".join(drawn)


def _beside(places: Sequence[Point], labels: Sequence[str]) -> Iterable[tuple[Point, str]]:
    """A label for each place; of places that lie on each other one for all of them."""
    found: dict[Point, list[str]] = {}
    for (x, y), label in zip(places, labels, strict=False):
        near = next((other for other in found if abs(other[0] - x) < 20 and abs(other[1] - y) < 14), (x, y))
        found.setdefault(near, []).append(label)
    for place, names in found.items():
        yield place, ", ".join(names)


def _stairs(stairs: Stairs, frame: Frame) -> str:
    base = frame.y(0.0)
    outline = [(frame.x(stairs.edges[0]), base)]
    for (low, high), count in zip(itertools.pairwise(stairs.edges), stairs.counts, strict=True):
        outline += [(frame.x(low), frame.y(count)), (frame.x(high), frame.y(count))]
    outline.append((frame.x(stairs.edges[-1]), base))
    style = f"fill: var(--{stairs.colour}); fill-opacity: 0.3; stroke: var(--{stairs.colour}); stroke-width: 1.5"
    return f'<path d="{_path(outline)}" style="{style}"/>'


def _rule(rule: Rule, frame: Frame) -> str:
    if rule.vertical:
        x = frame.x(rule.at)
        drawn = _line(x, frame.top, x, frame.bottom, rule.colour, 1.2, rule.dash)
        right = rule.at > (frame.x_low + frame.x_high) / 2
        place = x - 5 if right else x + 5
        y = frame.bottom - 6 - 15 * rule.row
        return drawn + (
            text(place, y, rule.text, rule.colour, 11, anchor="end" if right else "start") if rule.text else ""
        )
    y = frame.y(rule.at)
    return _line(frame.left, y, frame.right, y, rule.colour, 1.2, rule.dash)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, dash: str = "") -> str:
    dashes = f"stroke-dasharray: {dash}; " if dash else ""
    style = f"{dashes}stroke: var(--{colour}); stroke-width: {width:g}"
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="{style}"/>'


def _disc(place: Point, radius: float, colour: str, shade: float = 1.0) -> str:
    opacity = f"; fill-opacity: {shade:.3g}" if shade < 1 else ""
    return f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="{radius:g}" style="fill: var(--{colour}){opacity}"/>'


def _path(places: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
