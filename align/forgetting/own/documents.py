"""Documents of a task of lm-evaluation-harness in words: what is asked, what is right, what a model said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Document:
    """The prompt of a document, without the examples before it, and its right answer; empty where there is none."""

    prompt: str
    answer: str


def document(leaf: Any, doc: Any) -> Document:
    """A document in words.

    Args:
        leaf: the task of the harness.
        doc: one of its documents.
    """
    asked, right = leaf.doc_to_text(doc), leaf.doc_to_target(doc)
    if isinstance(asked, int):  # several beginnings, of which one suits the end: the number of the right one
        return Document(f"... {right}", _choice(leaf, doc, asked))
    return Document(str(asked).strip(), _answer(leaf, doc, right))


def _answer(leaf: Any, doc: Any, right: Any) -> str:
    """The first of several answers that are right; a number is that of a choice."""
    first = next(iter(right), "") if isinstance(right, list | tuple) else right
    if isinstance(first, int) and _has_choices(leaf):
        return _choice(leaf, doc, first)
    return str(first).strip()


def _choice(leaf: Any, doc: Any, number: int) -> str:
    choices = leaf.doc_to_choice(doc)
    return str(choices[number]).strip() if 0 <= number < len(choices) else ""


def _has_choices(leaf: Any) -> bool:
    return leaf.OUTPUT_TYPE == "multiple_choice" or leaf.get_config("doc_to_choice") is not None


def answered(leaf: Any, metric: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """What a model said, and of choices the probability of the right one: `said` and `p` of a line of items.jsonl,
    each where there is such a thing.

    Args:
        metric: by which the score counts; that of choices may be by length.
        sample: of the harness, logged.
    """
    if leaf.OUTPUT_TYPE == "generate_until":
        said = sample["resps"][0][0]  # whole, not what a filter made of it
        return {"said": said.strip()} if isinstance(said, str) else {}
    if leaf.OUTPUT_TYPE != "multiple_choice":
        return {}
    choices = [str(one) for one in leaf.doc_to_choice(sample["doc"])]
    likelihoods = [float(one[0]) for one in sample["filtered_resps"]]
    if len(likelihoods) not in (len(choices), 2 * len(choices)) or not all(map(math.isfinite, likelihoods)):
        return {}
    counted = _counted(metric, choices, likelihoods)
    best = max(range(len(choices)), key=counted.__getitem__)  # the first of equal ones, as the harness takes it
    found: dict[str, Any] = {"said": choices[best].strip()}
    right = _right(leaf, sample["doc"], choices)
    if metric == "acc" and right is not None:
        weights = [math.exp(one - max(counted)) for one in counted]
        found["p"] = round(weights[right] / sum(weights), 6)
    return found


def _counted(metric: str, choices: Sequence[str], likelihoods: Sequence[float]) -> list[float]:
    """What the choices count by: log-likelihoods in nats; for some metrics by character, by byte, or beside those of
    the choices alone, which the harness asks for after the others."""
    alone = likelihoods[len(choices) :]
    given = likelihoods[: len(choices)]
    if metric == "acc_mutual_info" and alone:
        return [one - other for one, other in zip(given, alone, strict=True)]
    sizes = [1] * len(choices)
    if metric == "acc_norm":
        sizes = [len(one) for one in choices]
    elif metric == "acc_bytes":
        sizes = [len(one.encode()) for one in choices]
    return [one / max(size, 1) for one, size in zip(given, sizes, strict=True)]


def _right(leaf: Any, doc: Any, choices: Sequence[str]) -> int | None:
    """The number of the one right choice; None where it is not one."""
    asked = leaf.doc_to_text(doc)
    right = asked if isinstance(asked, int) else leaf.doc_to_target(doc)
    if isinstance(right, str):
        return choices.index(right) if right in choices else None
    return right if isinstance(right, int) and 0 <= right < len(choices) else None
