"""Advice as the terminal prints it, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from align.advice.advise import Advice, Advised
from align.advice.lines import block

VERSION: Final = 1
"""Of the JSON; raised when a key goes or changes its meaning."""
HEAD: Final = "What to change in its recipe.yaml, the most likely to help first:"
NOT_MEASURED: Final = "no table has this change on such a run"


def text(advice: Advice) -> Iterator[str]:
    """Lines: the cause, each change with its lines of the recipe and what speaks for it, what else there is to say."""
    yield advice.verdict
    for other in advice.causes[1:]:
        yield f"Also: {other.sentence}"
    if advice.changes:
        yield ""
        yield HEAD
    for number, advised in enumerate(advice.changes, 1):
        yield ""
        yield f"{number}. {advised.change.what}"
        yield ""
        yield from (f"    {line}" for line in block(advised.change.lines))
        yield ""
        yield from (f"   Evidence: {row}." for row in _evidence(advised))
    if advice.notes:
        yield ""
        yield from advice.notes


def _evidence(advised: Advised) -> list[str]:
    return [str(row) for row in advised.evidence] or [NOT_MEASURED]


def document(advice: Advice) -> dict[str, Any]:
    """As `align advise RUN --json` prints it."""
    return {
        "version": VERSION,
        "run": advice.run,
        "verdict": advice.verdict,
        "causes": [{"key": cause.key, "stage": cause.stage, "sentence": cause.sentence} for cause in advice.causes],
        "changes": [_change(advised) for advised in advice.changes],
        "notes": list(advice.notes),
    }


def _change(advised: Advised) -> dict[str, Any]:
    change = advised.change
    rows = [{"page": row.page, "table": row.table, "row": row.row, "figures": row.figures} for row in advised.evidence]
    lines = [{"path": line.dotted, "old": line.old, "new": line.new} for line in change.lines]
    return {
        "key": change.key,
        "cause": advised.cause.key,
        "what": change.what,
        "lines": lines,
        "yaml": "\n".join(block(change.lines)),
        "evidence": rows,
    }
