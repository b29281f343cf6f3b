"""Puts runs side by side. Imports neither torch nor matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.compare import better, differences, settings, sides
from align.compare.sides import Side
from align.compare.table import RunEntry, RunsCompared


def compare(folders: Sequence[Path]) -> RunsCompared:
    """The runs in these folders side by side, the first as what the others are held against.

    Raises:
        AlignError: a folder is no run or has nothing to compare, or the runs have another base, other probes or items.
    """
    found = sides.read(folders)
    split = differences.split_of(found)
    without = differences.left_out(found, split)
    stages = [[side.last for side in found]]
    common = [id for id in found[0].stages if all(id in side.stages for side in found)]
    stages += [[id] * len(found) for id in common if [id] * len(found) != stages[0]]
    tables = tuple(differences.table(found, each, split, without) for each in stages)
    labels = [side.label for side in found]
    return RunsCompared(
        split=split,
        runs=tuple(_entry(side) for side in found),
        tables=tables,
        left_out=without,
        training=settings.training(found),
        settings=settings.different(found),
        findings=tuple(better.against_first(labels, tables[0])),
        best=better.best(found, tables[0], split),
    )


def _entry(side: Side) -> RunEntry:
    return RunEntry(
        label=side.label,
        folder=str(side.folder),
        name=side.report.run.name,
        align=side.report.run.align,
        stages=tuple(side.stages),
        under_way=side.under_way,
    )
