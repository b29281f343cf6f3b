"""What a recipe holds out: what it asks for, or is told why not; what it did not ask for never refuses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.errors import AlignError
from align.preflight.check import Prepared, prepare
from align.recipe import load

GOOD = {"role": "assistant", "content": "Please call us, thank you."}
BAD = {"role": "assistant", "content": "We do not care at all."}


def pair(prompt: str, more: str = "") -> dict[str, Any]:
    chosen = {**GOOD, "content": GOOD["content"] + more}
    return {"prompt": [{"role": "user", "content": prompt}], "chosen": [chosen], "rejected": [BAD]}


def prepared(folder: Path, stage: str, rows: list[dict[str, Any]]) -> Prepared:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "r.yaml"
    path.write_text(f"name: x\nmodel: {{base: lab}}\nforgetting: {{probes: none}}\nstages: {{{stage}}}\n")
    return prepare(load.load(path))


REWARD = "reward: {data: rows.jsonl, training: {per_device_train_batch_size: 1}}"
FEW = [pair(f"My {thing} is cracked.") for thing in ("lamp", "cup", "hat", "pen", "box")]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_reward_stage_on_few_pairs_holds_one_out(tmp_path: Path, count: int) -> None:
    found = prepared(tmp_path, REWARD, FEW[:count])
    rows = found.rows["reward"]
    assert (len(rows.train), len(rows.evaluation)) == (count - 1, 1)
    assert not any("held out" in note for note in found.notes)


def test_a_reward_stage_on_one_prompt_trains_and_says_that_nothing_is_held_out(tmp_path: Path) -> None:
    found = prepared(tmp_path, REWARD, [pair("My lamp is cracked.", more) for more in ("", " Bye.", " So long.")])
    assert (len(found.rows["reward"].train), found.rows["reward"].evaluation) == (3, [])
    note = "stage reward: all 3 rows have the same prompt and are trained on, so none is held out for evaluation"
    assert note in found.notes
    alone = prepared(tmp_path, REWARD, FEW[:1])
    assert "stage reward: the only row is trained on, so none is held out for evaluation" in alone.notes


@pytest.mark.parametrize("name", ["reward", "dpo"])
def test_what_was_asked_for_and_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(AlignError) as error:
        prepared(tmp_path, f"{name}: {{data: rows.jsonl, eval_data: 0.000001}}", FEW)
    assert str(error.value) == (
        f"{tmp_path}/r.yaml:4:{len(name) + 31}: holding out 1e-06 of 5 rows takes none of them\n"
        "  -> hold out a larger share, or a whole number of rows"
    )


@pytest.mark.parametrize("share", ["0.3", "8"])
@pytest.mark.parametrize("name", ["sft", "dpo", "reward"])
def test_the_answers_to_a_prompt_are_held_out_together(tmp_path: Path, name: str, share: str) -> None:
    rows: list[dict[str, Any]] = [pair(f"My lamp {n} is cracked.", more) for n in range(12) for more in ("", " Bye.")]
    if name == "sft":
        rows = [{"messages": row["prompt"] + row["chosen"]} for row in rows]
    found = prepared(tmp_path, f"{name}: {{data: rows.jsonl, eval_data: {share}}}", rows).rows[name]
    train, held = ({example.asked() for example in side} for side in (found.train, found.evaluation))
    assert train and held and not train & held and len(train | held) == 12
    assert len(found.evaluation) == 2 * len(held)
