"""The figure of a Spectrum scan: each type of layer, its ratio by layer number, and which layers were trained."""

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from align.report.svg import PALETTE, canvas, finish, whole
from align.spectrum.records import Spectrum, SpectrumModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: Final = 4
"""Panels in a row, one for each type."""


def by_type(scan: Spectrum) -> dict[str, list[tuple[int, SpectrumModule]]]:
    """The modules of each type with their layer numbers; of a layer's experts the one with the highest ratio."""
    found: dict[str, dict[int, SpectrumModule]] = defaultdict(dict)
    for module in scan.modules:
        number = re.search(r"\.(\d+)\.", module.name)
        if number is None:
            continue
        best = found[module.type].get(int(number[1]))
        if best is None or module.snr > best.snr:
            found[module.type][int(number[1])] = module
    return {kind: sorted(modules.items()) for kind, modules in found.items()}


def figure(scan: Spectrum) -> "Figure":
    """One panel a type, on axes of their own: ratios are compared within a type only."""
    kinds = by_type(scan)
    rows = -(-len(kinds) // COLUMNS)
    whole, first = canvas(2.0 * min(COLUMNS, len(kinds)), 1.35 * rows + 0.1)
    first.remove()
    chosen = {name.partition("[")[0] for name in scan.chosen}
    for place, (kind, modules) in enumerate(kinds.items()):
        axes = whole.add_subplot(rows, min(COLUMNS, len(kinds)), place + 1)
        _panel(axes, kind, modules, chosen)
    whole.subplots_adjust(left=0.06, right=0.99, top=1 - 0.28 / (1.35 * rows), bottom=0.3 / (1.35 * rows + 0.1))
    whole.subplots_adjust(wspace=0.42, hspace=0.75)
    return whole


def _panel(axes: Any, kind: str, modules: list[tuple[int, SpectrumModule]], chosen: set[str]) -> None:
    numbers, ratios = [number for number, _ in modules], [module.snr for _, module in modules]
    axes.plot(numbers, ratios, color=PALETTE["line"], linewidth=0.8)
    for trained, colour in ((False, PALETTE["muted"]), (True, PALETTE["blue"])):
        points = [(n, m.snr) for n, m in modules if (m.name.partition("[")[0] in chosen) is trained]
        if points:
            fill = "full" if trained else "none"
            axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=4, fillstyle=fill, linestyle="none")
    axes.set_title(kind, loc="left", fontsize=8, weight="bold", color=PALETTE["ink"])
    axes.tick_params(labelsize=7)
    axes.locator_params(nbins=4)
    whole(axes)
    finish(axes, "")
