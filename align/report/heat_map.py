"""The matrix as shades: a deeper cell is a better score, an orange frame a capability that was forgotten."""

from collections.abc import Sequence
from typing import Final

from align.forgetting.table import Cell, Forgetting, ProbeEntry
from align.report import findings, numbers
from align.report.svg import clip, element, text

COLUMN: Final = 76
ROW: Final = 28
GAP: Final = 10
"""Pixels: of a stage, of a capability, between two groups."""

CHARACTER: Final = 7.0
"""Pixels that a character of a name takes at most, on average."""


def heat_map(forgetting: Forgetting) -> str:
    """The figure as SVG."""
    stages = [name for name in forgetting.stages if name in forgetting.matrix]
    groups = findings.groups(forgetting)
    names = [clip(name, 30) for group in groups for name in group.probes]
    label = min(215.0, 14 + CHARACTER * max(len(name) for name in names))
    parts = [
        text(label + COLUMN * (at + 0.5), 17, clip(stage, 11), "ink", 12.5, weight=600, anchor="middle")
        for at, stage in enumerate(stages)
    ]
    y = 26.0
    for group in groups:
        for name in group.probes:
            probe = forgetting.probes[name]
            row = [forgetting.matrix[stage].get(name, Cell()) for stage in stages]
            parts.append(text(label - 10, y + 18, clip(name, 30), "ink", 12.5, anchor="end"))
            for at, (cell, shade) in enumerate(zip(row, shades(row, probe), strict=True)):
                parts.append(_square(label + COLUMN * at, y, cell, probe, shade))
            y += ROW
        y += GAP
    return element("Scores after every stage", label + COLUMN * len(stages) + 2, y - GAP + 2, parts)


def _square(x: float, y: float, cell: Cell, probe: ProbeEntry, shade: float) -> str:
    forgot = cell.verdict == "FORGOT"
    box = f'x="{x + 2:.1f}" y="{y + 2:.1f}" width="{COLUMN - 4}" height="{ROW - 4}" rx="4"'
    drawn = f'<rect {box} style="fill: var(--heat); fill-opacity: {shade:.3f}"/>'
    if forgot:
        drawn += f'<rect {box} style="fill: none; stroke: var(--orange); stroke-width: 2"/>'
    score, weight = numbers.score(cell.score, probe), 700 if forgot else 400
    drawn += text(x + COLUMN / 2 - 3, y + 18.5, score, "ink", 12.5, weight=weight, anchor="middle")
    mark = {"FORGOT": ("▼", "orange"), "UNCLEAR": ("?", "ink")}.get(cell.verdict or "")
    if mark:
        drawn += text(x + COLUMN - 7, y + 18, mark[0], mark[1], 10, weight=700, anchor="end")
    return drawn


def shades(row: Sequence[Cell], probe: ProbeEntry) -> list[float]:
    """Opacity of every cell: its score where that lies between 0 and 1, else the best score of the row over it."""
    scores = [cell.score for cell in row if cell.score is not None]
    if probe.higher_is_better:
        top = max([1.0, *scores])
        parts = [(cell.score or 0.0) / top for cell in row]
    else:
        parts = [min(scores) / cell.score if cell.score else 0.0 for cell in row]
    return [0.05 + 0.5 * min(1.0, max(0.0, part)) for part in parts]
