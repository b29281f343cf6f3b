"""Held-out rows and probe items that are trained on are counted, and told as notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.preflight.check import prepare
from align.recipe import load

RECIPE = """\
name: leaky
model: {base: lab}
forgetting: {probes: {sums: {data: sums.jsonl, metric: accuracy}, prose: {data: prose.jsonl, metric: perplexity}}}
stages:
  sft: {data: train.jsonl, eval_data: held.jsonl}
"""


def chat(question: str, answer: str, before: str = "") -> dict[str, list[dict[str, str]]]:
    first = [{"role": "user", "content": before}, {"role": "assistant", "content": "Yes."}] if before else []
    return {
        "messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


def notes(tmp_path: Path, **files: list[dict[str, object]]) -> list[str]:
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return prepare(load.load(tmp_path / "recipe.yaml")).notes


@pytest.fixture
def clean() -> dict[str, list[dict[str, object]]]:
    sums = [{"prompt": f"{n} + {n}?", "completion": str(2 * n)} for n in range(1, 9)]
    return {
        "sums": list(sums),
        "prose": [{"text": f"There were {n} birds in the tree."} for n in range(8)],
        "train": [chat(f"{n} + 1?", str(n + 1)) for n in range(20, 30)],
        "held": [chat(f"{n} + 2?", str(n + 2)) for n in range(4)],
    }


def test_disjoint_rows_say_nothing(tmp_path: Path, clean: dict[str, list[dict[str, object]]]) -> None:
    assert notes(tmp_path, **clean) == []


def test_held_out_rows_that_are_trained_on(tmp_path: Path, clean: dict[str, list[dict[str, object]]]) -> None:
    clean["train"] += clean["held"][:1]
    said = "stage sft: 1 of 4 rows of eval_data are also training rows, so its loss is too optimistic"
    assert notes(tmp_path, **clean) == [said]


def test_probe_items_that_are_trained_on(tmp_path: Path, clean: dict[str, list[dict[str, object]]]) -> None:
    """As one turn of a longer conversation too; a question alone, with another answer, is none."""
    clean["train"] += [chat("3 + 3?", "6", before="Can you add?"), chat("4 + 4?", "Eight."), chat("5 + 5?", " 10 ")]
    said = "stage sft: 2 of 8 items of the probe 'sums' are also training rows, so it measures memorisation"
    assert notes(tmp_path, **clean) == [said]


def test_texts_of_a_probe_that_are_trained_on(tmp_path: Path, clean: dict[str, list[dict[str, object]]]) -> None:
    clean["train"] = [{"text": row["text"]} for row in clean["prose"][:5]]
    said = "stage sft: 5 of 8 items of the probe 'prose' are also training rows, so it measures memorisation"
    assert notes(tmp_path, **clean) == [said]
