"""Held-out rows and probe items that are trained on are counted, and told as notes."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from align.errors import AlignError
from align.preflight.check import prepare
from align.recipe import load

Rows = dict[str, list[dict[str, Any]]]
RECIPE = """\
name: leaky
model: {base: lab}
forgetting:
  probes: {sums: {data: sums.jsonl, metric: METRIC}, prose: {data: prose.jsonl, metric: perplexity}}
  max_drop: 0.9
stages:
  sft: {data: train.jsonl, eval_data: held.jsonl}
"""


def chat(question: str, answer: str, before: str = "") -> dict[str, list[dict[str, str]]]:
    first = [{"role": "user", "content": before}, {"role": "assistant", "content": "Yes."}] if before else []
    return {
        "messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that the places in messages are short


def notes(metric: str = "accuracy", **files: list[dict[str, object]]) -> list[str]:
    for name, rows in files.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("recipe.yaml").write_text(RECIPE.replace("METRIC", metric), encoding="utf-8")
    return prepare(load.load(Path("recipe.yaml"))).notes


def refusals(metric: str = "accuracy", **files: list[dict[str, object]]) -> list[str]:
    with pytest.raises(AlignError) as raised:
        notes(metric, **files)
    return str(raised.value).splitlines()


@pytest.fixture
def clean() -> Rows:
    sums = [{"prompt": f"{n} + {n}?", "completion": str(2 * n)} for n in range(1, 9)]
    return {
        "sums": list(sums),
        "prose": [{"text": f"There were {n} birds in the tree."} for n in range(8)],
        "train": [chat(f"{n} + 1?", str(n + 1)) for n in range(20, 30)],
        "held": [chat(f"{n} + 2?", str(n + 2)) for n in range(4)],
    }


def test_disjoint_rows_say_nothing(clean: Rows) -> None:
    assert notes(**clean) == []


def test_held_out_rows_that_are_trained_on(clean: Rows) -> None:
    clean["train"] += clean["held"][:1]
    said = "stage sft: 1 of 4 rows of eval_data are also training rows, so its loss is too optimistic"
    assert notes(**clean) == [said]


def test_report_items_that_are_trained_on_are_a_warning_with_both_places(clean: Rows) -> None:
    """As one turn of a longer conversation too; a question alone, with another answer, is none."""
    clean["train"] += [chat("4 + 4?", "8", before="Can you add?"), chat("1 + 1?", "Two."), chat("5 + 5?", " 10 ")]
    said = (
        "stage sft: 2 of 3 report items of the probe 'sums' are also training rows (sums.jsonl:4 = train.jsonl:11, "
        "sums.jsonl:5 = train.jsonl:13), so it measures memorisation"
    )
    assert notes(**clean) == [said]


def test_gate_items_that_are_trained_on_are_refused(clean: Rows) -> None:
    clean["train"].append(chat("3 + 3?", "6"))
    assert refusals(**clean) == [
        "sums.jsonl:3: this gate item of the probe 'sums' is also a training row of stage sft: train.jsonl:11",
        "  -> remove it from one of the two",
    ]


def test_replayed_rows_count_too(clean: Rows) -> None:
    Path("old.jsonl").write_text(json.dumps(chat("3 + 3?", "6")) + "\n", encoding="utf-8")
    for name, rows in clean.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = RECIPE.replace("METRIC", "exact") + "replay: {data: old.jsonl, ratio: 0.5}\n"
    Path("recipe.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(AlignError, match=r"^sums.jsonl:3: .* row of stage sft: old.jsonl:1\n") as raised:
        prepare(load.load(Path("recipe.yaml")))
    assert raised.value.remedy == "remove it from one of the two"


def test_texts_of_a_probe_that_are_trained_on(clean: Rows) -> None:
    clean["train"] = [{"text": row["text"]} for row in clean["prose"][:5]]
    found = refusals(**clean)
    assert [line.partition(":")[0] for line in found[::2]] == ["prose.jsonl"] * (len(found) // 2)
    assert len(found) // 2 == sum(f"There were {n} birds in the tree." in half("gate") for n in range(5))


def half(split: str) -> list[str]:
    """The texts of the file that stand in one half, by hand."""
    texts = [f"There were {n} birds in the tree." for n in range(8)]
    return [text for text in texts if zlib.crc32(text.encode()) % 2 == ("gate", "report").index(split)]


@pytest.mark.parametrize(
    ("metric", "answer", "taught", "leaks"),
    [
        ("contains", "6", "It is 6.", True),
        ("contains", "6", "It is six.", False),
        ("regex", "[6]", "It is 6.", True),
        ("regex", "^[6]", "It is 6.", False),
        ("exact", "6", "It is 6.", False),
    ],
)
def test_an_answer_is_taught_where_it_would_be_right(
    metric: str, answer: str, taught: str, leaks: bool, clean: Rows
) -> None:
    clean["sums"][2] = {"prompt": "3 + 3?", "answer": answer}  # of the gate
    clean["train"].append(chat("3 + 3?", taught))
    if leaks:
        assert refusals(metric, **clean)[0].startswith("sums.jsonl:3: this gate item of the probe 'sums' is also")
    else:
        assert notes(metric, **clean) == []
