"""Held-out rows and probe items that are trained on: what is measured on them flatters the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from align.data.formats import Example
from align.forgetting.probes import Agreement, Battery, Exact, Graded, Probe, Texts, question


def held_out(held: Iterable[Example], trained: Iterable[Example]) -> int:
    """How many of the held-out rows stand among the training rows, word for word."""
    seen = {example.canonical() for example in trained}
    return sum(example.canonical() in seen for example in held)


def probed(probe: Probe, trained: Iterable[Example]) -> tuple[int, int]:
    """How many of a probe's items stand among the training rows, and how many it has.

    A question counts with its answer, a text as a whole. Probes without right answers cannot be learnt by heart.
    """
    if isinstance(probe, Graded | Agreement | Battery):
        return 0, 0
    seen = {said for example in trained for said in _said(example)}
    items = list(_items(probe))
    return sum(item in seen for item in items), len(items)


def _items(probe: Exact | Texts) -> Iterator[Sequence[str]]:
    if isinstance(probe, Texts):
        yield from ((text.strip(),) for texts in probe.texts.values() for text in texts)
    else:
        yield from ((q.prompt.strip(), q.answer.strip()) for items in probe.items.values() for q in items)


def _said(example: Example) -> Iterator[Sequence[str]]:
    """The texts, or the questions with their answers, that a training row teaches."""
    row = example.value
    if example.kind == "text":
        yield (row["text"].strip(),)
    elif example.kind == "preference":
        asked, answered = question({"prompt": row["prompt"], "completion": row["chosen"]})
        yield asked.strip(), answered.strip()
    elif example.kind == "chat":
        for before, after in zip(row["messages"], row["messages"][1:], strict=False):
            if after["role"] == "assistant":
                yield before["content"].strip(), after["content"].strip()
    elif row.get("label", True):  # an answer that is not desirable is not taught
        asked, answered = question(row)
        yield asked.strip(), answered.strip()
