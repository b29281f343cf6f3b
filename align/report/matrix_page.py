"""The matrix as text: a row for each capability, a column for each stage, and what sums it up."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from align.forgetting.table import Cell, Forgetting, ProbeEntry
from align.report import findings, numbers
from align.report.distance_page import nats
from align.report.findings import BASE

MEANS: Final = {"all": "Mean of all skills", "replayed": "Mean, in the replay", "not_replayed": "Mean, not replayed"}


@dataclass(frozen=True)
class Entry:
    """One cell of the matrix."""

    score: str
    change: str = ""
    verdict: str = ""
    direction: str = ""


@dataclass(frozen=True)
class Row:
    """One capability of the matrix, an entry for each column."""

    name: str
    n: int | None
    entries: tuple[Entry | None, ...]


@dataclass(frozen=True)
class Block:
    """Rows of the matrix under one heading."""

    title: str
    rows: tuple[Row, ...]


def columns(forgetting: Forgetting) -> list[str]:
    return [name for name in forgetting.stages if name in forgetting.matrix]


def _entry(cell: Cell | None, probe: ProbeEntry) -> Entry | None:
    if cell is None:
        return None
    return Entry(
        numbers.score(cell.score, probe), numbers.change(cell), cell.verdict or "",
        findings.direction(cell, probe) or "",
    )  # fmt: skip


def blocks(forgetting: Forgetting) -> Iterable[Block]:
    shown = columns(forgetting)
    for group in findings.groups(forgetting):
        rows = []
        for name in group.probes:
            probe = forgetting.probes[name]
            entries = tuple(_entry(forgetting.matrix[column].get(name), probe) for column in shown)
            rows.append(Row(name, probe.n, entries))
        yield Block(group.title, tuple(rows))


def summary(forgetting: Forgetting) -> Iterable[Row]:
    shown = columns(forgetting)
    for key, title in MEANS.items():
        cells = [forgetting.mean.get(column, {}).get(key) for column in shown]
        if any(cells):
            n = next((cell.n for cell in cells if cell), None)
            yield Row(title, n, tuple(_entry(cell, ProbeEntry()) for cell in cells))
    for title, values, intervals in (
        ("Backward transfer", forgetting.backward_transfer, forgetting.backward_transfer_ci95),
        ("Average forgetting", forgetting.average_forgetting, forgetting.average_forgetting_ci95),
    ):
        if values:
            trained = [column if column in values and column != BASE else None for column in shown]
            texts = [numbers.estimate(values[column], intervals.get(column)) if column else "" for column in trained]
            yield Row(title, None, tuple(Entry(text) for text in texts))
    if forgetting.task_kl:
        found = [forgetting.task_kl.get(column) for column in shown]
        yield Row("KL to the base", None, tuple(Entry(nats(kl.judged)) if kl else Entry("") for kl in found))
