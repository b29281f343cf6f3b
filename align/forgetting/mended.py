"""Answers that the base had wrong and the model has right: what broken.jsonl is for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.forgetting.probes import Exact, Probe
from align.forgetting.quoted import Quotable, quoted
from align.forgetting.records import MendedAnswer

MENDED_KEPT = 4  # a probe


def mended(
    probes: Sequence[Probe], before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> list[MendedAnswer]:
    """The first few of each skill, of the report's half.

    Args:
        before, now: lines of items.jsonl of the base and of this model.
    """
    wrong = {
        (line["probe"], line["id"]): line for line in before if line["split"] == "report" and not line.get("score")
    }
    found = []
    for probe in probes:
        if isinstance(probe, Quotable):
            here = [line for line in now if line["probe"] == probe.name and line["split"] == "report" and line["score"]]
            here = [line for line in here if (probe.name, line["id"]) in wrong][:MENDED_KEPT]
            found += [_answer(probe, line, wrong[probe.name, line["id"]]) for line in here]
    return found


def _answer(probe: Quotable, line: Mapping[str, Any], before: Mapping[str, Any]) -> MendedAnswer:
    """What was said then and is said now, as far as it was written: exact answers are judged without being generated,
    so that only the right one is known."""
    prompt, answer = quoted(probe, line["id"])
    said = line.get("said", answer if isinstance(probe, Exact) else "")
    return MendedAnswer(
        probe=probe.name, id=line["id"], split="report", prompt=prompt, before=before.get("said", ""), after=said
    )
