"""A scan for the terminal, and as JSON. Imports rich and nothing heavier."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from align.spectrum import choose
from align.spectrum.choose import Record
from align.spectrum.records import Spectrum, SpectrumModule

CHOSEN, DEGENERATE = "*", "?"


def snr_table(records: Sequence[Record], estimator: str, threshold: float | None = None) -> Table:
    """Layers as rows, types as columns, the signal-to-noise ratio in the cells.

    Of experts the cell shows the best, and how many are chosen.

    Args:
        records: a scan.
        estimator: its name, for the title.
        threshold: `snr_threshold`; the modules that it chooses are marked. None: no marks.

    Raises:
        AlignError: the threshold is not within 0...1.
    """
    chosen = set[str]() if threshold is None else set(choose.by_threshold(records, threshold).names)
    types = list(choose.by_type(records))
    table = Table(
        title=Text(f"SNR, {estimator}", style="table.title"),
        caption=_legend(records, threshold, len(chosen)),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
    )
    table.add_column("layer", justify="right", no_wrap=True, min_width=5)
    for head in _heads(types):
        table.add_column(Text(head), justify="right", no_wrap=True)
    cells: dict[tuple[int, str], list[Record]] = {}
    for record in records:
        cells.setdefault((record.layer, record.type), []).append(record)
    for layer in sorted({record.layer for record in records}):
        table.add_row(str(layer), *(_cell(cells.get((layer, type), []), chosen) for type in types))
    return table


def spectrum(records: Sequence[Record], estimator: str) -> Spectrum:
    """A scan as a record."""
    modules = [
        SpectrumModule(
            name=record.name,
            type=record.type,
            shape=record.shape,
            snr=record.snr,
            threshold=record.threshold,
            degenerate=record.degenerate,
        )
        for record in records
    ]
    return Spectrum(estimator=estimator, modules=tuple(modules))


def _cell(group: list[Record], chosen: set[str]) -> Text:
    if not group:
        return Text("-")
    best = min(group, key=lambda record: (record.degenerate, -record.snr))
    taken = sum(record.name in chosen for record in group)
    text = Text(f"{best.snr:.2g}", style="bold green" if taken else "")
    if len(group) > 1:
        text.append(f" {taken}/{len(group)}")
    # a blank where nothing is marked keeps the digits in line
    text.append((DEGENERATE if best.degenerate else " ") + (CHOSEN if taken else " "))
    return text


def _heads(types: list[str]) -> list[str]:
    """The last parts of the types, as many as tell them apart."""
    for parts in range(1, 8):
        heads = [".".join(type.split(".")[-parts:]) for type in types]
        if len(set(heads)) == len(heads):
            return heads
    return types


def _legend(records: Sequence[Record], threshold: float | None, chosen: int) -> str | None:
    parts = []
    if threshold is not None:
        parts.append(f"{CHOSEN} trained at snr_threshold {threshold:g}: {chosen} of {len(records)}")
    undecided = sum(record.degenerate for record in records)
    if undecided:
        parts.append(f"{DEGENERATE} degenerate, ranked last: {undecided}")
    return "; ".join(parts) or None
