"""What was written, in sentences, for the terminal and the report. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.written.filters import told


def replayed(figures: Mapping[str, Any]) -> str:
    """`80 rows to replay, of which 77 are kept (3 written before)`."""
    reasons = f" ({told(figures['rejected'])})" if figures["rejected"] else ""
    kept = f"{figures['kept']:,} {'is' if figures['kept'] == 1 else 'are'} kept"
    return f"{figures['written']:,} row{'' if figures['written'] == 1 else 's'} to replay, of which {kept}{reasons}"


def rewritten(figures: Mapping[str, Any]) -> str:
    """How many answers are the policy's own, and why the others are not."""
    are = "is" if figures["rewritten"] == 1 else "are"
    own = f"{figures['rewritten']:,} of {figures['rows']:,} answers {are} the policy's own"
    own += f" ({figures['same']:,} of them the same as the data's)"
    rest = f", {figures['dropped']:,} rows are dropped" if figures["dropped"] else ""
    rest = ", 1 row is dropped" if figures["dropped"] == 1 else rest
    reasons = ", ".join(f"{why} ({count:,})" for why, count in figures["not_rewritten"].items())
    return own + rest + (f"; not replaced: {reasons}" if reasons else "")


def writer(figures: Mapping[str, Any]) -> str:
    """Who wrote the rows."""
    return "the base" if figures["by"] == "base" else "the policy"
