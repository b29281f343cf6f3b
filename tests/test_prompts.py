"""Which prompts the base and every policy are asked, so that their answers can be read side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.data.formats import Example, Kind
from align.errors import Place
from align.forgetting import prompts
from align.forgetting.prompts import StageRows, choose
from align.forgetting.records import Answer
from align.run_folder import files
from align.runner import answers

GENERAL = 6
HELLO = {"role": "user", "content": "Hello"}


def example(kind: Kind, **value: Any) -> Example:
    return Example(kind, value, Place("rows.jsonl", 1))


def questions(name: str, n: int) -> list[Example]:
    return [example("prompt_completion", prompt=f"{name} {i}?", completion="yes") for i in range(n)]


def asked(stages: dict[str, StageRows]) -> list[tuple[str, str]]:
    """The prompts of the task with their sources."""
    found = choose(stages, lab=False)
    assert [one.kind for one in found] == ["task"] * (len(found) - GENERAL) + ["general"] * GENERAL
    return [(prompts.shown(one.value), one.source) for one in found if one.kind == "task"]


def test_held_out_rows_come_before_training_rows() -> None:
    rows = StageRows(questions("train", 20), questions("held", 4))
    assert sorted(asked({"sft": rows})) == [(f"held {i}?", "a held-out row of sft") for i in range(4)]
    trained = asked({"sft": StageRows(rows.train, [])})
    assert len(trained) == 6 and {source for _, source in trained} == {"a training row of sft"}


def test_stages_without_held_out_rows_are_left_out_where_another_has_some() -> None:
    held = StageRows(questions("train", 20), questions("held", 9))
    found = asked({"sft": StageRows(questions("other", 20), []), "dpo": held})
    assert {source for _, source in found} == {"a held-out row of dpo"} and len(found) == 6


def test_every_stage_gets_its_share_in_the_order_of_the_stages() -> None:
    stages = {name: StageRows(questions(name, 20), []) for name in ("sft", "dpo")}
    assert [source for _, source in asked(stages)] == ["a training row of sft"] * 3 + ["a training row of dpo"] * 3
    few = {"sft": StageRows(questions("sft", 1), []), "dpo": StageRows(questions("dpo", 20), [])}
    assert [source for _, source in asked(few)] == ["a training row of sft"] + ["a training row of dpo"] * 5


def test_a_prompt_is_asked_once() -> None:
    same = StageRows(questions("same", 2), [])
    assert asked({"sft": same, "dpo": same}) == [
        ("same 1?", "a training row of sft"),
        ("same 0?", "a training row of dpo"),
    ]


def test_rows_that_ask_nothing_or_too_much_are_passed_over() -> None:
    rows = [
        example("text", text="Once upon a time."),
        example("chat", messages=[{"role": "assistant", "content": "Hi"}]),
        example("prompt_completion", prompt="x" * (prompts.LONGEST + 1), completion="yes"),
        example("prompt_completion", prompt="y" * prompts.LONGEST, completion="yes"),
    ]
    assert asked({"sft": StageRows(rows, [])}) == [("y" * prompts.LONGEST, "a training row of sft")]


def test_a_conversation_is_asked_up_to_its_last_answer_with_its_tools() -> None:
    talk = [{"role": "system", "content": "Be short."}, HELLO, {"role": "assistant", "content": "Hi"}]
    rows = [example("chat", messages=talk, tools=[{"name": "search"}])]
    first = choose({"sft": StageRows(rows, [])}, lab=False)[0]
    assert first.value == {"prompt": talk[:2], "tools": [{"name": "search"}]}
    assert prompts.shown(first.value) == "system: Be short.\nuser: Hello"
    assert prompts.shown({"prompt": [HELLO]}) == prompts.shown({"prompt": "Hello"}) == "Hello"


def test_the_same_rows_give_the_same_prompts_and_other_prompts_other_ids() -> None:
    stages = {"sft": StageRows(questions("sft", 200), [])}
    first, again = choose(stages, lab=False), choose(stages, lab=False)
    assert first == again and len({prompt.id for prompt in first}) == 6 + GENERAL


def test_nothing_is_asked_where_no_stage_gives_a_policy() -> None:
    assert choose({}, lab=False) == []


def test_the_lab_model_gets_held_out_questions_of_its_world() -> None:
    from align.lab import world
    from align.lab.skills import SKILLS

    found = [prompts.shown(one.value) for one in choose({"sft": StageRows([], [])}, lab=True)]
    assert len(found) == len(prompts.LAB_SKILLS) == GENERAL and set(prompts.LAB_SKILLS) <= set(SKILLS)
    assert found[1:4] == ["Repeat: i c j e", "Reverse: h l i", "Add 107 and 9."]
    assert [world.split_of(key) for key in ("copy i c j e", "reverse h l i", "add 107 9")] == ["report"] * 3


def test_answers_are_missing_unless_they_are_to_these_prompts(tmp_path: Path) -> None:
    chosen = choose({"sft": StageRows(questions("sft", 9), [])}, lab=False)
    path = tmp_path / "answers.jsonl"
    assert answers.missing(path, chosen) and not answers.missing(path, [])
    lines = [json.dumps(Answer(id=one.id).written()) + "\n" for one in chosen]
    files.write_text(path, "".join(lines))
    assert not answers.missing(path, chosen)
    assert answers.missing(path, chosen[1:]) and answers.missing(path, [*chosen[:-1], chosen[0]])
    files.write_text(path, "".join(lines[:-1]))
    assert answers.missing(path, chosen)


@pytest.mark.parametrize("changed", [True, False])
def test_the_terminal_shows_an_answer_of_the_task_and_a_general_one(changed: bool, tmp_path: Path) -> None:
    """Of each kind the first that the stage answers otherwise, else the first."""
    rows = [("task", "a", "one", "one"), ("task", "b", "one", "two" if changed else "one")]
    rows += [("general", "c", "x " * 60, "x " * 60), ("text", "d", "1", "2")]
    for column, name in ((2, "base"), (3, "dpo_stage")):
        made = [
            Answer(id=row[1], kind=row[0], prompt=f"Q {row[1]}?\nYes.", answer=row[column], source="a row of x")
            for row in rows
        ]
        files.write_text(tmp_path / name, "".join(json.dumps(one.written()) + "\n" for one in made))
    long = ("x " * 60)[:80]
    assert list(answers.told(tmp_path / "base", tmp_path / "dpo_stage", "dpo_stage")) == [
        f"      asked  Q {'b' if changed else 'a'}? Yes. (a row of x)",
        "       base  one",
        f"  dpo_stage  {'two' if changed else 'one'}",
        "      asked  Q c? Yes. (a row of x)",
        f"       base  {long} …",
        f"  dpo_stage  {long} …",
    ]
    assert list(answers.told(tmp_path / "none", tmp_path / "dpo_stage", "dpo_stage")) == []
