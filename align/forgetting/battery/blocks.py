"""Tables whose paragraphs hold rows of one form: the rows of a paragraph are each other's wrong answers, so that every
answer is right for one item and wrong for the others, and an answer's frequency tells nothing."""

from __future__ import annotations


def blocks(table: str) -> list[list[tuple[str, ...]]]:
    """Paragraphs of rows, their fields separated by ` | `."""
    paragraphs = table.strip().split("\n\n")
    return [[tuple(row.split(" | ")) for row in paragraph.strip().splitlines()] for paragraph in paragraphs]
