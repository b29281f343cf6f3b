"""Lines for the terminal that show a text as it is: `[a]` in a path is no markup, `:100:` after a file no emoji."""

from __future__ import annotations

from rich.text import Text

# a terminal obeys these, and they may come from a file of data; a new line and a tab are shown as what they are
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def line(text: str, word: str = "", style: str = "yellow") -> Text:
    """`text`, after a word in colour if there is one."""
    text = text.translate(_CONTROL)
    return Text.assemble((word, style), " ", text) if word else Text(text)
