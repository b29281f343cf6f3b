"""Remedies of the experiment as changes of another recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from align.advice import evidence
from align.advice.changes import FILE, Change
from align.advice.evidence import Cell, Evidence
from align.advice.facts import Family, RunFacts, StageFacts
from align.advice.lines import Line

METHOD: dict[Family, str] = {"full": "full", "adapter": "lora"}
LAB_ROWS = "lab/general"


def speaks(change: str, family: Family) -> Iterator[Evidence]:
    """What the experiment says of a change of `changes.py`, by a method of this kind, where it was better than none."""
    method = METHOD[family]
    for cell in evidence.ranked(method):
        if cell.change == change:
            yield from evidence.of_remedy(cell.name, method)


def ranked(facts: StageFacts, run: RunFacts, known: set[str]) -> Iterator[tuple[Change, Evidence]]:
    """Remedies that were better than none, the best first, as lines for this stage.

    Args:
        known: keys of changes that are advised already.
    """
    method = METHOD[facts.family]
    for cell in evidence.ranked(method):
        if cell.change in known or (cell.stage is not None and cell.stage != facts.program):
            continue
        lines = tuple(_lines(cell, facts, run))
        rows = list(evidence.of_remedy(cell.name, method))
        if lines and rows:
            yield Change(cell.name, f"{cell.title[0].upper()}{cell.title[1:]}.", lines), rows[0]


def _lines(cell: Cell, facts: StageFacts, run: RunFacts) -> Iterator[Line]:
    """None where the recipe says something of these keys already."""
    stands: Mapping[str, Any] = facts.entry if cell.stage else run.forgetting
    before = ("stages", facts.id) if cell.stage else ("forgetting",)
    if any(stands.get(key) not in (None, "warn") for key in cell.keys):
        return
    for key, value in cell.keys.items():
        old = stands.get(key)
        if isinstance(value, Mapping):
            for name, inner in value.items():
                yield Line((*before, key, name), None, _rows(inner, run))
        else:
            yield Line((*before, key), old, value)


def _rows(value: Any, run: RunFacts) -> Any:
    """The lab's rows stand for those of the user."""
    if value == LAB_ROWS:
        return value if run.base == "lab" else FILE
    if isinstance(value, Mapping):
        return {key: _rows(inner, run) for key, inner in value.items()}
    return [_rows(inner, run) for inner in value] if isinstance(value, list) else value
