"""Answers that the base had right and a model has wrong, written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.forgetting.bench import ANSWER_TOKENS, Bench, generate
from align.forgetting.measurements import Split
from align.forgetting.probes import Exact, Probe
from align.forgetting.quoted import Quotable, quoted
from align.forgetting.records import BrokenAnswer

SHOWN = 4  # of a probe

Record = dict[str, Any]  # a line of items.jsonl
Key = tuple[str, Split, str]  # probe, split, id


def broken(bench: Bench, probes: Sequence[Probe], base: Sequence[Record]) -> list[BrokenAnswer]:
    """The first few of each skill, of the report's half.

    Args:
        bench: the model, after it was measured.
        base: lines of items.jsonl of the base.
    """
    before = {(r["probe"], r["split"], r["id"]): r for r in base}
    now = {(r["probe"], r["split"], r["id"]): r for r in bench.items}
    out: list[BrokenAnswer] = []
    for probe in probes:
        if isinstance(probe, Quotable):
            here = [key for key in now if key[:2] == (probe.name, "report")]
            lost = [key for key in here if before.get(key, {}).get("score") and not now[key]["score"]][:SHOWN]
            shown = _exact_answers(bench, probe, lost) if isinstance(probe, Exact) else _said(probe, lost, before, now)
            out += shown
    return out


def _exact_answers(bench: Bench, probe: Exact, lost: Sequence[Key]) -> list[BrokenAnswer]:
    """What the model answers now, generated."""
    by_id = {question.id: question for question in probe.items["report"]}
    questions = [by_id[id] for _, _, id in lost]
    answers = generate(bench, [q.prompt for q in questions], ANSWER_TOKENS) if questions else []
    texts = [bench.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    return [
        BrokenAnswer(
            probe=probe.name, id=q.id, split="report", prompt=q.prompt, answer=q.answer, before=q.answer, after=text
        )
        for q, text in zip(questions, texts, strict=True)
    ]


def _said(
    probe: Quotable, lost: Sequence[Key], before: Mapping[Key, Record], now: Mapping[Key, Record]
) -> list[BrokenAnswer]:
    """What both said, as measured."""
    found = []
    for key in lost:
        prompt, answer = quoted(probe, key[2])
        found.append(
            BrokenAnswer(
                probe=probe.name,
                id=key[2],
                split="report",
                prompt=prompt,
                answer=answer,
                before=before[key].get("said", ""),
                after=now[key].get("said", ""),
            )
        )
    return found
