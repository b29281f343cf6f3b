"""`align data show`: what is printed is what the trainer's own batch holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.errors import AlignError
from align.inspection import rows as show_rows
from align.recipe import load

ANSWERS = {
    "prompt": [{"role": "user", "content": "What is 7 plus 2?"}],
    "chosen": [
        {"role": "assistant", "content": "It is 9."},
        {"role": "user", "content": "Is it?"},
        {"role": "assistant", "content": "Yes."},
    ],
    "rejected": [{"role": "assistant", "content": "No idea."}],
}
OTHER = {
    "prompt": [{"role": "user", "content": "Repeat: a b"}],
    "chosen": [{"role": "assistant", "content": "a b"}],
    "rejected": [{"role": "assistant", "content": "b"}],
}
TALK = [*ANSWERS["prompt"], *ANSWERS["chosen"]]
ASK = "<|bos|><|user|>What is 7 plus 2?<|end|><|assistant|>"
CHOSEN = f"{ASK}⟦It is 9.<|end|>⟧<|user|>Is it?<|end|><|assistant|>⟦Yes.<|end|>⟧"
REJECTED = f"{ASK}⟦No idea.<|end|>⟧"


def shown(folder: Path, stage: str, rows: list[dict[str, object]], more: str = "", row: int = 1) -> list[str]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    text = f"name: x\nmodel: {{base: lab}}\nstages:\n  {stage}:\n    data: rows.jsonl\n{more}"
    (folder / "x.yaml").write_text(text)
    lines = [line.plain for line in show_rows.show(load.load(folder / "x.yaml"), stage, row)]
    return lines[2:]


def test_a_conversation(tmp_path: Path) -> None:
    assert shown(tmp_path, "sft", [{"messages": TALK}]) == ["\n32 tokens, 13 marked", CHOSEN]


@pytest.mark.parametrize(("turns", "expected"), [
    ("last", CHOSEN.replace("⟦It is 9.<|end|>⟧", "It is 9.<|end|>")),
    ("each", f"{ASK}⟦It is 9.<|end|>⟧"),
])  # fmt: skip
def test_other_turns(tmp_path: Path, turns: str, expected: str) -> None:
    assert shown(tmp_path, "sft", [{"messages": TALK}], f"    turns: {turns}\n")[1] == expected


def test_both_sides_of_a_pair(tmp_path: Path) -> None:
    lines = shown(tmp_path, "dpo", [ANSWERS])
    assert lines[1::2] == [CHOSEN, REJECTED]
    assert lines[0].startswith("\nchosen: ") and lines[2].startswith("\nrejected: ")


def test_single_answers(tmp_path: Path) -> None:
    training = "    training: {per_device_train_batch_size: 4}\n"
    lines = shown(tmp_path, "kto", [ANSWERS, OTHER], training)
    assert lines[1::2] == [CHOSEN, REJECTED]
    assert lines[0].startswith("\ndesirable: ") and lines[2].startswith("\nundesirable: ")


def test_a_reward_model_reads_the_last_token(tmp_path: Path) -> None:
    lines = shown(tmp_path, "reward", [ANSWERS, OTHER])
    plain = CHOSEN.replace("⟦", "").replace("⟧", "")
    assert lines[1] == plain.removesuffix("<|end|>") + "⟦<|end|>⟧"


def test_a_row_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AlignError) as caught:
        shown(tmp_path, "sft", [{"messages": TALK}], row=2)
    assert str(caught.value) == "there is no row 2: stage 'sft' has 1\n  -> count from 1"
