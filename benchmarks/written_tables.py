"""The tables of docs/remedies.md and the file that `align advise` takes its evidence from: both from the same rows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from align.advice.evidence import FILE, Cell, Figures, Measured, Mended

PAGE = Path(__file__).resolve().parents[1] / "docs" / "remedies.md"


def mended(rows: Sequence[Mended], why: Mapping[Mended, str] | None = None) -> str:
    """A row for each change; `why` says what it did not mend."""
    lines = ["| run | change | task | mean of the skills | perplexity | evaluation loss |", "|---|---|---|---|---|---|"]
    for row in rows:
        before, after = row.before, row.after
        cells = [
            row.case,
            row.made + (f" ({why[row]})" if why and why[row] else ""),
            f"{row.task.split()[-1]} {before.task:.3f} -> {after.task:.3f}",
            f"{before.skills:.3f} -> {after.skills:.3f}",
            f"{perplexity(before)} -> {perplexity(after)}",
            "" if before.evaluation is None else f"{before.evaluation:.3f} -> {after.evaluation or 0:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def perplexity(figures: Figures | Cell) -> str:
    """With two digits behind the point, or none where it is large."""
    return f"{figures.perplexity:.2f}" if figures.perplexity < 100 else f"{figures.perplexity:,.0f}"


def cells(rows: Sequence[Cell]) -> str:
    """A row for each remedy and method."""
    lines = [
        "| remedy | method | task correct | mean of the skills | perplexity | CPU s | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        task, skills = _of_seeds(row.task, row.task_range), _of_seeds(row.skills, row.skills_range)
        lines.append(
            f"| {row.name} | {row.method} | {task} | {skills} | {perplexity(row)} | {row.cpu:.0f} | {row.seeds} |"
        )
    return "\n".join(lines)


def _of_seeds(mean: float, ends: tuple[float, float] | None) -> str:
    """A mean, and how far the seeds lie apart."""
    return f"{mean:.3f}" if ends is None or ends[0] == ends[1] else f"{mean:.3f} ({ends[0]:.2f}-{ends[1]:.2f})"


def measured() -> Measured:
    """The rows as they stand."""
    return Measured.model_validate(json.loads(FILE.read_text(encoding="utf-8")))


def write_mended(rows: Sequence[Mended]) -> None:
    """Into both files; rows of other cases stay."""
    old = measured()
    kept = [row for row in old.mended if row.case not in {one.case for one in rows}]
    _write(old.model_copy(update={"mended": (*kept, *rows)}))


def write_cells(rows: Sequence[Cell]) -> None:
    """Into both files; rows of other remedies and methods stay, `rows` come first in their order."""
    old = measured()
    new = {(row.name, row.method) for row in rows}
    kept = [row for row in old.cells if (row.name, row.method) not in new]
    _write(old.model_copy(update={"cells": (*rows, *kept)}))


def _write(found: Measured) -> None:
    FILE.write_text(json.dumps(found.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


def filled(page: str, found: Measured) -> str:
    """The page with both tables made new."""
    for name, table in (("mended", mended(found.mended)), ("cells", cells(found.cells))):
        mark = f"<!-- table: {name} -->"
        if mark not in page:
            raise ValueError(f"docs/remedies.md has no mark {mark}")
        page = re.sub(rf"{mark}\n(\|.*\n)*", lambda _, m=mark, t=table: f"{m}\n{t}\n", page)  # type: ignore[misc]
    return page
