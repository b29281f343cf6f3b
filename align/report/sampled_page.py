"""Answers of a run: those that broke, and the same questions of the task through all stages."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from align.forgetting.records import BrokenAnswer, Sample
from align.forgetting.table import Forgetting
from align.report.schema import Report

BROKEN_SHOWN: Final = 5
"""Broken answers shown of one probe."""

SAMPLES_SHOWN: Final = 6


@dataclass(frozen=True)
class BrokenGroup:
    """Answers of one probe that were right in the base and are wrong after `stage`; `total` are lost in all."""

    stage: str
    probe: str
    total: int
    shown: tuple[BrokenAnswer, ...]


@dataclass(frozen=True)
class SampleGroup:
    """One prompt of the task and what every stage answered."""

    probe: str
    prompt: str
    outputs: tuple[tuple[str, Sample], ...]


def broken(report: Report) -> Iterable[BrokenGroup]:
    """The broken answers of the split that the report reads; of all splits where none is marked with it."""
    split = report.forgetting.split if report.forgetting else None
    for stage in report.stages:
        rows = [row for row in stage.broken if row.split == split] or list(stage.broken)
        by_probe: dict[str, list[BrokenAnswer]] = {}
        for row in rows:
            by_probe.setdefault(row.probe, []).append(row)
        for probe, found in by_probe.items():
            cell = report.forgetting.matrix.get(stage.id, {}).get(probe) if report.forgetting else None
            total = max(len(found), cell.lost or 0) if cell else len(found)
            yield BrokenGroup(stage.id, probe, total, tuple(found[:BROKEN_SHOWN]))


def samples(report: Report, forgetting: Forgetting) -> Iterable[SampleGroup]:
    """The same prompts of the task through all stages; prompts of any probe where no probe is a task."""
    tasks = {name.split(" ")[0] for name, probe in forgetting.probes.items() if probe.kind == "task"}
    found: dict[tuple[str, str], list[tuple[str, Sample]]] = {}
    for stage in report.stages:
        rows = [row for row in stage.samples if row.probe.split(" ")[0] in tasks] or stage.samples
        for row in rows:
            found.setdefault((row.probe, str(row.id)), []).append((stage.id, row))
    for (probe, _), outputs in list(found.items())[:SAMPLES_SHOWN]:
        yield SampleGroup(probe, outputs[0][1].prompt, tuple(outputs))
