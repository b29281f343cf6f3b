"""Lines for the terminal that show a text as it is: `[a]` in a path is no markup, `:100:` after a file no emoji."""

from __future__ import annotations

from rich.text import Text


def line(text: str, word: str = "", style: str = "yellow") -> Text:
    """`text`, after a word in colour if there is one."""
    return Text.assemble((word, style), " ", text) if word else Text(text)
