"""Probes of one's own: what a row asks, and which half it stands in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.forgetting import probes
from align.forgetting.keys import ForgettingKeys
from align.forgetting.probes import Exact, Texts

HALVES = {
    "gate": ["Sort: c b a", "Sort: c d a", "Sort: c f a", "Sort: c h a"],
    "report": ["Sort: c e a", "Sort: c g a"],
}


def own(folder: Path, rows: list[dict[str, Any]], metric: str) -> probes.Probe:
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    keys = ForgettingKeys.model_validate({"probes": {"own": {"data": "own.jsonl", "metric": metric}}})
    (found,) = probes.load(keys, folder)
    return found


def asked(probe: probes.Probe) -> dict[str, list[str]]:
    assert isinstance(probe, Exact)
    return {split: [one.prompt for one in items] for split, items in probe.items.items()}


def test_a_row_keeps_its_half_when_others_are_added(tmp_path: Path) -> None:
    """And from one version to the next: a limit is judged on the same rows as before."""
    rows = [{"prompt": f"Sort: c {x} a", "completion": f"a {x} c"} for x in "bdefgh"]
    assert asked(own(tmp_path, rows, "accuracy")) == HALVES
    more = [{"prompt": f"Sort: {x} b a", "completion": f"a b {x}"} for x in "xyz"]
    later = asked(own(tmp_path, [*more, *reversed(rows)], "accuracy"))
    assert {split: [one for one in items if " c " in one][::-1] for split, items in later.items()} == HALVES


def test_texts_are_halved_in_the_same_way(tmp_path: Path) -> None:
    found = own(tmp_path, [{"text": prompt} for prompts in HALVES.values() for prompt in prompts], "perplexity")
    assert isinstance(found, Texts) and found.texts == HALVES


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "completion": "4"},
        {
            "prompt": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "2 + 2?"},
            ],
            "completion": [{"role": "assistant", "content": "4"}],
        },
        {
            "messages": [
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": "2"},
                {"role": "user", "content": "2 + 2?"},
                {"role": "assistant", "content": "4"},
            ]
        },
    ],
    ids=["texts", "turns", "a talk"],
)
def test_a_row_asks_its_last_question(row: dict[str, Any]) -> None:
    assert probes.question(row) == ("2 + 2?", "4")
