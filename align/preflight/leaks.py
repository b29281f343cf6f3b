"""Held-out rows and probe items that are trained on: what is measured on them flatters the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from align.data.formats import Example
from align.errors import AlignError, Place
from align.forgetting.own import scoring
from align.forgetting.own.items import Halves, OwnItem
from align.forgetting.probes import question

SHOWN = 3  # leaks that a warning names

Taught = Mapping[str, Sequence[tuple[str, Place]]]  # what is asked, or a text -> the answers taught, and where


def held_out(held: Iterable[Example], trained: Iterable[Example]) -> int:
    """How many of the held-out rows stand among the training rows, word for word."""
    seen = {example.canonical() for example in trained}
    return sum(example.canonical() in seen for example in held)


@dataclass(frozen=True)
class Leak:
    """An item of a probe, and the row that teaches it."""

    item: Place
    row: Place


def probed(items: Halves, metric: str, taught: Taught) -> Mapping[str, list[Leak]]:
    """The items of a probe that stand among the training rows, by the half they are in.

    A question counts with its answer, as the metric compares it; without one, and a text, alone.

    Args:
        metric: of the probe.
        taught: what the rows teach, as `taught` finds it.
    """
    return {
        split: [Leak(item.place, row) for item in half if (row := _row_of(item, metric, taught)) is not None]
        for split, half in items.items()
    }


def taught(trained: Iterable[Example]) -> Taught:
    """What training rows teach, by what is asked; a text by itself."""
    found: dict[str, list[tuple[str, Place]]] = {}
    for example in trained:
        for asked, answered in _said(example):
            found.setdefault(asked, []).append((answered, example.place))
    return found


def refusals(
    probe: str, stage: str, leaks: Sequence[Leak], *, half: str = "gate", row: str = "training row"
) -> list[AlignError]:
    """A fault for each item that a stage trains on and must not: what it measures would mean nothing.

    Args:
        half: that the items are of.
        row: what the rows are to the stage.
    """
    return [
        AlignError(
            f"this {half} item of the probe '{probe}' is also a {row} of stage {stage}: {leak.row}",
            "remove it from one of the two",
            place=leak.item,
        )
        for leak in leaks
    ]


def warning(probe: str, leaks: Sequence[Leak], total: int, kind: str = "training rows") -> str:
    """What is said of items of the report that are trained on."""
    named = ", ".join(f"{leak.item} = {leak.row}" for leak in leaks[:SHOWN])
    more = f", and {len(leaks) - SHOWN:,} more" if len(leaks) > SHOWN else ""
    of = f"{len(leaks):,} of {total:,} report items of the probe '{probe}' are also {kind}"
    return f"{of} ({named}{more}), so it measures memorisation"


def _row_of(item: OwnItem, metric: str, taught: Taught) -> Place | None:
    """The first row that teaches an item."""
    if metric == "perplexity":
        return next((row for _, row in taught.get(str(item.prompt).strip(), ())), None)
    return next((row for said, row in taught.get(item.question.strip(), ()) if _same(item, metric, said)), None)


def _same(item: OwnItem, metric: str, said: str) -> bool:
    if metric in ("contains", "regex"):
        return bool({"contains": scoring.contains, "regex": scoring.matches}[metric](item, said))
    return not item.answer or item.answer.strip() == said


def _said(example: Example) -> Iterator[tuple[str, str]]:
    """The texts, or the questions with their answers, that a training row teaches."""
    row = example.value
    if example.kind == "text":
        yield row["text"].strip(), ""
    elif example.kind == "preference":
        asked, answered = question({"prompt": row["prompt"], "completion": row["chosen"]})
        yield asked.strip(), answered.strip()
    elif example.kind == "chat":
        for before, after in zip(row["messages"], row["messages"][1:], strict=False):
            if after["role"] == "assistant":
                yield before["content"].strip(), after["content"].strip()
    elif example.kind != "prompt" and row.get("label", True):  # an answer that is not desirable is not taught
        asked, answered = question(row)
        yield asked.strip(), answered.strip()
