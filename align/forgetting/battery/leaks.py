"""Questions of the battery that a stage trains on, word for word. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from align.forgetting.probes import Battery


def warnings(probes: Sequence[Battery], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each skill of which rows ask a question too; it measures memorisation there.

    Args:
        rows: canonical rows of a stage, replayed ones included.
    """
    asked = {folded(text) for row in rows for text in _questions(row)}
    for probe in probes:
        items = [item for half in probe.items.values() for item in half.values()]
        shared = [item for item in items if folded(item.messages[-1]["content"]) in asked]
        if shared:
            first = " ".join(shared[0].messages[-1]["content"].split())
            count = f"{len(shared)} of the {len(items)} questions of the skill '{probe.name}'"
            verb = "is" if len(shared) == 1 else "are"
            yield f"{count} {verb} in the training data too, such as {first[:80]!r}, so it measures memorisation"


def said(row: Mapping[str, Any]) -> Iterator[str]:
    """What a row asks, or its text, as questions are compared."""
    yield from map(folded, _questions(row))
    if isinstance(row.get("text"), str):
        yield folded(row["text"])


def _questions(row: Mapping[str, Any]) -> Iterator[str]:
    """What is asked in a row: every user's turn."""
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        yield prompt
    turns = [*(prompt if isinstance(prompt, list) else ()), *(row.get("messages") or ())]
    yield from (turn["content"] for turn in turns if turn["role"] == "user" and isinstance(turn["content"], str))


def folded(text: str) -> str:
    """A text whatever its case and white space."""
    return " ".join(text.lower().split())
