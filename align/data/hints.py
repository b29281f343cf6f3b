"""What to write under `columns` for a row that is of no known format: renames that fit its fields, or the general form.

Only fields whose names say what they hold are named; a wrong guess would train on an id.
"""

from __future__ import annotations

import re
from typing import Any, Final

from align.data.fields import FIELDS

_MEANS: Final[dict[str, frozenset[str]]] = {
    "chosen": frozenset({"chosen", "better", "preferred", "accepted", "winner", "win", "positive"}),
    "rejected": frozenset({"rejected", "reject", "worse", "dispreferred", "loser", "lose", "negative"}),
    "messages": frozenset({"messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns"}),
    "prompt": frozenset({"prompt", "question", "query", "instruction", "problem", "input", "asked", "user", "human"}),
    "completion": frozenset(
        {"completion", "response", "answer", "output", "solution", "reply", "target", "said", "assistant", "bot"}
    ),
    "text": frozenset({"text", "content", "body", "passage", "article", "document", "story", "paragraph"}),
}
"""A field of a format, and words that stand for it in the names of others."""

_FORMS: Final = (("prompt", "chosen", "rejected"), ("messages",), ("prompt", "completion"), ("text",))


def columns(row: dict[str, Any]) -> str:
    """A way out, to put after others: the renames that would make `row` one of the formats, as a recipe writes them,
    or that there are renames; "" for a row without texts of other names."""
    found = {meaning: _named(row, meaning) for meaning in _MEANS}
    for form in _FORMS:
        names = [found[meaning] for meaning in form]
        if all(names) and len(set(names)) == len(names):
            renames = [f"{meaning}: {name}" for meaning, name in zip(form, names, strict=True) if meaning != name]
            return f"; or map columns: {{{', '.join(renames)}}}" if renames else ""
    strange = any(isinstance(field, str) and name not in FIELDS for name, field in row.items())
    return "; or map them with `columns`" if strange else ""


def _named(row: dict[str, Any], meaning: str) -> str | None:
    """The field that is called so, or the only one that has a word for it in its name and something in it."""
    if row.get(meaning):
        return meaning
    wanted = list if meaning == "messages" else str
    named = [
        name
        for name, field in row.items()
        if isinstance(field, wanted) and field and _MEANS[meaning] & set(re.split(r"[^a-z]+", name.lower()))
    ]
    return named[0] if len(named) == 1 else None
