"""Names of fields that much used data sets have, hints where the names are others, and one fault for many rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.data.checks import load
from align.data.formats import normalise
from align.data.rows import Row
from align.data.sources import DataSource
from align.errors import AlignError, Place

PLACE = Place("data/x.jsonl", 17)
ASK = {"role": "user", "content": "Capital of Peru?"}
LIMA = {"role": "assistant", "content": "Lima."}
TEXTS = {"prompt": "1+1?", "completion": "2"}
PAIR = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}


@pytest.mark.parametrize(
    ("row", "kind", "value", "unused"),
    [
        # databricks/databricks-dolly-15k
        ({"instruction": "Capital of", "context": "Peru?", "response": "Lima.", "category": "open_qa"},
         "chat", {"messages": [{**ASK, "content": "Capital of\nPeru?"}, LIMA]}, ("'category'",)),
        ({"instruction": ASK["content"], "context": "", "response": "Lima."}, "chat", {"messages": [ASK, LIMA]}, ()),
        ({"instruction": "Capital of Peru?", "response": "Lima."}, "chat", {"messages": [ASK, LIMA]}, ()),
        # lvwerra/stack-exchange-paired
        ({"qid": 1, "question": "1+1?", "response_j": "2", "response_k": "3"}, "preference", PAIR, ("'qid'",)),
        ({"prompt": "1+1?", "chosen_response": "2", "rejected_response": "3"}, "preference", PAIR, ()),
        # Intel/orca_dpo_pairs, argilla
        ({"question": "1+1?", "chosen": "2", "rejected": "3", "system": ""}, "preference", PAIR, ()),
        ({"input": "1+1?", "chosen": "2", "rejected": "3"}, "preference", PAIR, ()),
        ({"input": "1+1?", "output": "2"}, "prompt_completion", TEXTS, ()),
        # meta-math/MetaMathQA, ms-swift
        ({"query": "1+1?", "response": "2"}, "prompt_completion", TEXTS, ()),
        ({"query": ASK["content"], "response": "Lima.", "history": [["Hi", "Hello."]]}, "prompt_completion",
         {"prompt": [{**ASK, "content": "Hi"}, {**LIMA, "content": "Hello."}, ASK], "completion": [LIMA]}, ()),
        # AI-MO/NuminaMath-CoT, whose messages say the same; HuggingFaceH4/MATH-500
        ({"problem": "1+1?", "solution": "2", "messages": [ASK, LIMA]}, "chat", {"messages": [ASK, LIMA]},
         ("'problem'", "'solution'")),
        ({"problem": "1+1?", "solution": "2", "answer": "3"}, "prompt_completion", TEXTS, ("'answer'",)),
        ({"inputs": "1+1?", "targets": "2"}, "prompt_completion", TEXTS, ()),
        ({"prompt": "1+1?", "answer": "2"}, "prompt_completion", TEXTS, ()),
        # nvidia/HelpSteer
        ({"prompt": "1+1?", "response": "2", "helpfulness": 4}, "prompt_completion", TEXTS, ("'helpfulness'",)),
        # allenai/WildChat, lmsys/lmsys-chat-1m
        ({"conversation": [ASK, LIMA]}, "chat", {"messages": [ASK, LIMA]}, ()),
        # Alpaca with the prompt as text once more
        ({"instruction": "Capital of Peru?", "input": "", "output": "Lima.", "text": "…"}, "chat",
         {"messages": [ASK, LIMA]}, ("'text'",)),
    ],
)  # fmt: skip
def test_names_that_are_known(row: dict[str, Any], kind: str, value: dict[str, Any], unused: tuple[str, ...]) -> None:
    example = normalise(Row(row, PLACE))
    assert (example.kind, example.value, example.unused) == (kind, value, unused)


def test_a_fault_names_the_field_that_the_row_has() -> None:
    rows = {
        "response_k": {"question": "1+1?", "response_j": "2", "response_k": " "},
        "question": {"question": " ", "response_j": "2", "response_k": "3"},
        "response": {"instruction": "1+1?", "response": " "},
        "solution": {"problem": "1+1?", "solution": ""},
        "prompt": {"prompt": " ", "completion": "x", "system": "Be brief."},
        "completion": {"prompt": "x", "completion": " ", "system": "Be brief."},
    }
    for field, row in rows.items():
        with pytest.raises(AlignError) as error:
            normalise(Row(row, PLACE))
        assert str(error.value) == f"data/x.jsonl:17: '{field}' is empty\n  -> fill it in, or remove the row"


GIVE = "give messages, prompt + completion, instruction + output, conversations, text, or prompt + chosen + rejected"


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"id": "7", "body": "two"}, "; or map columns: {text: body}"),
        ({"id": "7", "user_question": "1+1?", "bot_reply": "2"},
         "; or map columns: {prompt: user_question, completion: bot_reply}"),
        ({"ask": "1+1?", "Question": "1+1?", "worse_answer": "3", "better_answer": "2"},
         "; or map columns: {prompt: Question, chosen: better_answer, rejected: worse_answer}"),
        ({"id": "7", "dialog": [ASK, LIMA]}, "; or map columns: {messages: dialog}"),
        ({"title": "seven", "url": "x"}, "; or map them with `columns`"),
        ({"question_a": "x", "question_b": "y"}, "; or map them with `columns`"),
        ({"id": 7, "scores": [1]}, ""),
    ],
)  # fmt: skip
def test_hints_name_fields_that_say_what_they_hold(row: dict[str, Any], hint: str) -> None:
    with pytest.raises(AlignError) as error:
        normalise(Row(row, PLACE))
    assert error.value.remedy == GIVE + hint


def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], accepts: str) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AlignError) as error:
        load([DataSource(source="x.jsonl")], root=tmp_path, accepts=frozenset({accepts}), stage="s")
    return str(error.value)


def test_a_prompt_that_has_its_answers_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"prompt": "1+1?", "chosen_reply": "2", "rejected_reply": "3"}
    assert fault(tmp_path, monkeypatch, [row], "preference") == (
        "x.jsonl:1: stage 's' needs prompt + chosen + rejected, but the row is a prompt without an answer\n"
        "  -> use other data, or set `format` and `columns`; "
        "or map columns: {chosen: chosen_reply, rejected: rejected_reply}"
    )


def test_a_fault_of_many_rows_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = [{"prompt": f"{n}?", "chosen": "4", "rejected": "4 "} for n in range(20)]
    rows = [*same[:2], {"prompt": " ", "chosen": "4", "rejected": "5"}, *same[2:]]
    assert fault(tmp_path, monkeypatch, rows, "preference") == (
        "x.jsonl:1: 'chosen' and 'rejected' are identical, so the pair expresses no preference "
        "(also in 19 more rows: x.jsonl:2, x.jsonl:4, x.jsonl:5, and 16 more)\n"
        "  -> remove the row, or correct one of the two\n"
        "x.jsonl:3: 'prompt' is empty\n  -> fill it in, or remove the row"
    )
    four = fault(tmp_path, monkeypatch, [{"text": ""}] * 4, "text")
    assert four == (
        "x.jsonl:1: 'text' is empty (also in 3 more rows: x.jsonl:2, x.jsonl:3, x.jsonl:4)\n"
        "  -> fill it in, or remove the row"
    )
    three = fault(tmp_path, monkeypatch, [{"text": ""}] * 3, "text")
    assert three.count("'text' is empty\n  -> fill it in, or remove the row") == 3, "few are told with their lines"
