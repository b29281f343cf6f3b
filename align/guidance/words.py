"""The advice before a run, for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from align.guidance import rules
from align.guidance.rules import Choice
from align.guidance.situation import GB, Situation
from align.runner.lines import line

PROVIDER = (
    "a provider's API chooses the method itself: give it the rows as JSONL (`align data convert`), and measure the "
    "answers of what comes back"
)


def shown(now: Situation, choice: Choice, device: str) -> Iterator[RenderableType]:
    """The situation, what each method takes, and the choice."""
    many = f"{now.devices} x " if now.devices > 1 else ""
    size = f"{now.billions:.3g} B" if now.parameters >= 10**8 else f"{now.parameters / 10**6:.3g} M"
    yield line(f"{size} parameters, {now.rows:,} rows for {now.stage}, {many}{device}{_bytes(now.memory)}")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for head in ("method", "takes, one row at a time", "", "handbooks"):
        table.add_column(head)
    for method, takes, fits, usual in rules.compared(now):
        style = "bold green" if method == choice.method else ""
        table.add_row(*(Text(cell, style=style) for cell in (method, takes, fits, usual)))
    yield table
    yield Text(f"{choice.method}:", style="bold green")
    for reason in choice.reasons:
        yield line(f"  - {reason}")


def _bytes(memory: int | None) -> str:
    """Of a device: its label counts 2^30 bytes, all figures here 10^9."""
    return "" if memory is None else f" ({memory / GB:.3g} GB)"


def document(now: Situation, choice: Choice, recipe: str) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "parameters": now.parameters,
        "rows": now.rows,
        "stage": now.stage,
        "device_memory_bytes": now.memory,
        "devices": now.devices,
        "methods": {
            method: {"peak_memory_bytes": found.peak, "exact": found.exact, "fits": now.fits(method)}
            for method, found in now.needs.items()
        },
        "method": choice.method,
        "parameterization": choice.settings,
        "training": choice.training,
        "launch": choice.launch,
        "reasons": list(choice.reasons),
        "recipe": recipe,
    }
