"""A table in a page of docs/, between its mark and the line after it."""

from __future__ import annotations

import re
from pathlib import Path


def filled(page: str, mark: str, table: str) -> str:
    """The page with the table behind a mark made new.

    Raises:
        ValueError: it has no such mark.
    """
    if mark not in page:
        raise ValueError(f"the page has no mark {mark}")
    return re.sub(rf"{re.escape(mark)}\n(\|.*\n)*", lambda _: f"{mark}\n{table}\n", page)


def fill(file: Path, mark: str, table: str) -> None:
    """Write the page with the table made new."""
    file.write_text(filled(file.read_text(encoding="utf-8"), mark, table), encoding="utf-8")
