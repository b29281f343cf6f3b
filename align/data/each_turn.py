"""Conversations as one row for each turn of the assistant: what the model reads before it, as at inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from align.data.formats import Example


def each_turn(examples: Sequence[Example]) -> list[Example]:
    """A row for every turn of the assistant that is to be learnt, which ends with it; other rows as they are.

    A template then writes every answer as the last: with its thoughts, where those of earlier turns are left out.
    """
    found: list[Example] = []
    for example in examples:
        field = next((name for name in ("messages", "completion") if isinstance(example.value.get(name), list)), None)
        if field is None:
            found.append(example)
            continue
        turns = example.value[field]
        for number, turn in enumerate(turns, start=1):
            if turn["role"] == "assistant" and turn.get("train", True):
                found.append(replace(example, value=example.value | {field: turns[:number]}))
    return found
