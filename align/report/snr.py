"""The figures of a Spectrum scan: each type of layer, its ratio by layer number, and which layers were trained."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from align.report.chart import Chart, Curve, Dots, Mark
from align.spectrum.records import Spectrum, SpectrumModule

SIZE: Final = (240, 130)
RADIUS: Final = 3.5


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


def draw(scan: Spectrum) -> Iterator[Chart]:
    """One panel a type, on axes of their own: ratios are compared within a type only."""
    chosen = {name.partition("[")[0] for name in scan.chosen}
    for kind, modules in by_type(scan).items():
        points = tuple((float(number), module.snr) for number, module in modules)
        marks: list[Mark] = [Curve(points, "line", width=1.0)]
        for trained in (False, True):
            kept = [(n, m) for n, m in modules if (m.name.partition("[")[0] in chosen) is trained]
            if kept:
                where = tuple((float(number), module.snr) for number, module in kept)
                name = "trained" if trained else "not trained"
                shape, colour = ("disc", "blue") if trained else ("ring", "muted")
                radii = tuple(RADIUS for _ in where)
                marks.append(Dots(where, colour, radii, shape=shape, name=name))  # type: ignore[arg-type]
        title = f"Signal-to-noise ratio of {kind} by layer"
        yield Chart(title, ((kind, "ink"),), marks=marks, size=SIZE, x_name="layer")
