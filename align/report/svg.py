"""Drawing primitives: colours, figures, axes, and a drawing put inline."""

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from align.report import curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE: Final = {
    "ink": "#101112", "muted": "#707172", "line": "#c0c1c2", "blue": "#0072b2", "orange": "#d55e00", "green": "#009e73",
    "purple": "#aa4499", "heat": "#0072b3",
}  # fmt: skip


MAX_POINTS: Final = 240


RC: Final = {
    "svg.fonttype": "none", "svg.hashsalt": "align", "text.parse_math": False, "font.family": "DejaVu Sans",
    "font.size": 9, "axes.edgecolor": PALETTE["line"], "axes.labelcolor": PALETTE["muted"],
    "axes.formatter.useoffset": False, "text.color": PALETTE["ink"], "xtick.color": PALETTE["line"],
    "ytick.color": PALETTE["line"], "xtick.labelcolor": PALETTE["muted"], "ytick.labelcolor": PALETTE["muted"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "lines.solid_capstyle": "round",
    "grid.color": PALETTE["line"], "grid.linewidth": 0.5,
}  # fmt: skip


def inline(svg: str, prefix: str) -> str:
    """An SVG file as markup for a page: no prologue, no style of its own, ids of its own, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*</defs>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg).replace("xlink:href", "href")
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _root, svg, count=1)
    for name, value in PALETTE.items():
        svg = svg.replace(value, f"var(--{name})")
    svg = re.sub(r"font: (?:(\d+) )?([\d.]+)px [^;\"]*", lambda m: f"font: {m[1] or 400} {m[2]}px var(--sans)", svg)
    return re.sub(r">\s+<", "><", svg).strip()


def _root(match: "re.Match[str]") -> str:
    width = float(match[1].split()[2])
    return f'<svg viewBox="{match[1]}" role="img" style="width: 100%; max-width: {width * 4 / 3:.0f}px">'


def canvas(width: float, height: float) -> "tuple[Figure, Any]":
    """A figure of that many inches with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_axes((0, 0, 1, 1))


def inset(figure: "Figure", axes: Any, left: float, right: float, top: float, bottom: float) -> None:
    """Place the axes with margins in inches: what a layout engine would find, without its second drawing."""
    width, height = figure.get_size_inches()
    axes.set_position((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))


def whole(axes: Any) -> None:
    """Whole numbers alone below the axis: there is no step 1.5, also where a single one is drawn."""
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def finish(axes: Any, label: str) -> None:
    axes.set_xlabel(label)
    axes.margins(x=0.02)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=2.5)


def thinned(points: curves.Points) -> list[tuple[float, float]]:
    if len(points) <= MAX_POINTS:
        return list(points)
    edges = [round(k * len(points) / MAX_POINTS) for k in range(MAX_POINTS + 1)]
    stretches = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]


def smooth(values: Sequence[float]) -> list[float]:
    """A centred moving mean over a twelfth of the curve; narrower at the start, where a loss is steep."""
    reach = max(1, len(values) // 24)
    spans = [values[at - min(reach, at) : at + min(reach, at) + 1] for at in range(len(values))]
    return [sum(span) / len(span) for span in spans]


def clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
