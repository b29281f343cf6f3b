"""Answers with a label: what KTO learns, what others make of them, and whether both kinds weigh the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.data.checks import Table, load
from align.data.formats import normalise
from align.data.rows import Row
from align.data.sources import DataSource
from align.errors import AlignError, Place
from align.stage import program

PLACE = Place("data/x.jsonl", 17)
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Capital of Peru?"}
LIMA = {"role": "assistant", "content": "Lima."}
MORE = {"role": "user", "content": "And of Chile?"}
SANTIAGO = {"role": "assistant", "content": "Santiago."}
ACCEPTS = {name: program.load(name, Path()).stage.rows for name in ("kto", "sft", "dpo", "reward", "ppo")}


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "1+1?", "completion": "2"}, "1+1?", "2"),
        ({"prompt": [ASK], "completion": [LIMA]}, [ASK], [LIMA]),
        ({"prompt": [ASK], "response": "Lima."}, [ASK], [LIMA]),
        ({"messages": [SYSTEM, ASK, LIMA]}, [SYSTEM, ASK], [LIMA]),
        ({"messages": [ASK, LIMA, MORE, SANTIAGO]}, [ASK, LIMA, MORE], [SANTIAGO]),
        ({"conversations": [ASK, LIMA], "system": "Be brief."}, [SYSTEM, ASK], [LIMA]),
        ({"instruction": "Capital of", "input": "Peru?", "output": "Lima."},
         [{"role": "user", "content": "Capital of\nPeru?"}], [LIMA]),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("label", "desirable"),
    [(True, True), (False, False), (1, True), (0, False), ("true", True), ("False", False), ("1", True), (0.0, False)],
)
def test_an_answer_with_a_label(row: dict[str, Any], prompt: Any, completion: Any, label: Any, desirable: bool) -> None:
    for name in ("label", "kto_tag"):
        example = normalise(Row({**row, name: label}, PLACE))
        assert (example.kind, example.unused) == ("unpaired", ())
        assert example.value == {"prompt": prompt, "completion": completion, "label": desirable}
        assert example.value["label"] is desirable


def test_a_label_beside_other_formats_is_no_label_of_an_answer() -> None:
    pair = {"prompt": "x", "chosen": "y", "rejected": "z", "label": 1}
    assert normalise(Row(pair, PLACE)).kind == "preference"
    assert normalise(Row({"text": "x", "label": 1}, PLACE)).kind == "text"
    assert normalise(Row({"prompt": "x", "completion": "y", "label": "history"}, PLACE)).kind == "prompt_completion"
    assert normalise(Row({"messages": [ASK, LIMA], "label": None}, PLACE)).kind == "chat"
    named = normalise(Row({"messages": [ASK, LIMA], "label": False}, PLACE), "messages")
    assert (named.kind, named.unused) == ("chat", ("'label'",))


def test_tools_and_marks_of_a_labelled_answer() -> None:
    tool = {"type": "function", "function": {"name": "look_up"}}
    row = {"messages": [ASK, {**LIMA, "train": False}, MORE, SANTIAGO], "label": True, "tools": [tool]}
    assert normalise(Row(row, PLACE)).value == {
        "prompt": [ASK, LIMA, MORE],
        "completion": [SANTIAGO],
        "label": True,
        "tools": [tool],
    }


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([LIMA], "the row has an answer but no prompt\n  -> remove it"),
        (
            [ASK, LIMA, MORE, {**SANTIAGO, "train": False}],
            "the answer that the label applies to is marked as not trained\n  -> remove the mark or the row",
        ),
    ],
)
def test_a_labelled_answer_that_cannot_be_learnt(messages: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(AlignError) as error:
        normalise(Row({"messages": messages, "label": True}, PLACE))
    assert str(error.value) == f"data/x.jsonl:17: {text}"


def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], name: str) -> Table:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load([DataSource(source="x.jsonl")], root=tmp_path, accepts=ACCEPTS[name], stage=name)


GOOD = {"prompt": "1+1?", "completion": "2", "label": True}
BAD = {"messages": [ASK, SANTIAGO], "label": False}
TALK = {"messages": [ASK, LIMA], "label": True}
PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}


def test_kto_takes_them_beside_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(tmp_path, monkeypatch, [GOOD, PAIR, BAD], "kto")
    assert [example.value for example in found.examples] == [
        GOOD,
        PAIR,
        {"prompt": [ASK], "completion": [SANTIAGO], "label": False},
    ]


def test_sft_learns_those_that_are_desirable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(tmp_path, monkeypatch, [GOOD, BAD, TALK], "sft")
    assert [(example.kind, example.value) for example in found.examples] == [
        ("prompt_completion", {"prompt": "1+1?", "completion": "2"}),
        ("chat", {"messages": [ASK, LIMA]}),
    ]
    assert found.warnings == ["1 of 3 rows are dropped: they are labelled undesirable"]
    with pytest.raises(AlignError) as error:
        table(tmp_path, monkeypatch, [BAD, BAD], "sft")
    assert str(error.value) == (
        "x.jsonl:1: stage 'sft' trains on answers, but every row is labelled undesirable\n  -> give other data"
    )


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_what_needs_pairs_refuses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(AlignError) as error:
        table(tmp_path, monkeypatch, [GOOD], name)
    assert str(error.value) == (
        f"x.jsonl:1: stage '{name}' needs prompt + chosen + rejected, but the row is an answer with a label\n"
        "  -> use other data, or set `format` and `columns`"
    )


def test_ppo_takes_their_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(tmp_path, monkeypatch, [TALK, BAD], "ppo")
    assert [example.value for example in found.examples] == [{"prompt": [ASK]}, {"prompt": [ASK]}]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            {"prompt": "x", "completion": "y", "label": "good"},
            "the label 'good' is neither true nor false\n"
            "  -> write true for a desirable answer, false for an undesirable one",
        ),
        (
            {"prompt": "x", "completion": "y", "label": 0.7},
            "the label 0.7 is neither true nor false\n"
            "  -> write true for a desirable answer, false for an undesirable one",
        ),
        (
            {"prompt": "x", "completion": "y"},
            "stage 'kto' needs prompt + chosen + rejected or prompt + completion + label, "
            "but the row is a prompt with a completion\n"
            "  -> use other data, or set `format` and `columns`",
        ),
    ],
)
def test_kto_needs_a_label_that_it_understands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], text: str
) -> None:
    with pytest.raises(AlignError) as error:
        table(tmp_path, monkeypatch, [row], "kto")
    assert str(error.value) == f"x.jsonl:1: {text}"


@pytest.mark.parametrize(
    ("good", "bad", "pairs", "weights", "said"),
    [
        (0, 0, 5, {}, []),
        (4, 3, 0, {}, []),  # 4/3 to 1, the end of the range
        (30, 10, 0, {"undesirable_weight": 3}, []),
        (
            30,
            10,
            0,
            {},
            [
                "30 desirable answers with weight 1 and 10 undesirable ones with weight 1: 3.00 to 1; "
                "TRL recommends 1 to 1.33: set undesirable_weight between 2.25 and 3"
            ],
        ),
        (
            5,
            15,
            5,
            {"desirable_weight": 0.5},
            [
                "10 desirable answers with weight 0.5 and 20 undesirable ones with weight 1: 0.25 to 1; "
                "TRL recommends 1 to 1.33: set desirable_weight between 2 and 2.66"
            ],
        ),
        (
            3,
            0,
            0,
            {},
            [
                "3 desirable answers with weight 1 and 0 undesirable ones with weight 1: "
                "with only one kind, KTO either only raises or only lowers probabilities"
            ],
        ),
    ],
)
def test_whether_both_kinds_weigh_the_same(
    good: int, bad: int, pairs: int, weights: dict[str, float], said: list[str]
) -> None:
    rows = [GOOD] * good + [BAD] * bad + [PAIR] * pairs
    keys = program.load("kto", Path()).stage.keys.model_validate({"data": "x.jsonl", **weights})
    assert keys.notes([normalise(Row(row, PLACE)) for row in rows]) == said
