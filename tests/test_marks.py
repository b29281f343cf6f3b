"""What of a message reaches the trainer: marks of what is trained on, thoughts, and nothing lost without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.data.checks import load
from align.data.conversation import ChatTemplate
from align.data.formats import normalise, prompt_of
from align.data.rows import Row
from align.data.sources import DataSource
from align.errors import AlignError, Place

PLACE = Place("data/x.jsonl", 17)
ASK = {"role": "user", "content": "Is pier 4 open?"}
RUDE = {"role": "assistant", "content": "Who cares."}
PLEASE = {"role": "user", "content": "Please?"}
YES = {"role": "assistant", "content": "Yes, until six."}
CHAT = frozenset({"chat", "prompt_completion", "text"})


def value(row: dict[str, Any]) -> dict[str, Any]:
    return normalise(Row(row, PLACE)).value


def fault(row: dict[str, Any]) -> str:
    with pytest.raises(AlignError) as error:
        value(row)
    return str(error.value)


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"train": False},
        {"training": False},
        {"trainable": False},
        {"loss": False},
        {"loss_weight": 0},
        {"train": False, "weight": 0},
        {"train": False, "weight": None},
    ],
)
def test_every_spelling_of_a_mark_becomes_one(mark: dict[str, Any]) -> None:
    marked = [ASK, RUDE | mark, PLEASE, YES | dict.fromkeys(mark, True)]
    assert value({"messages": marked}) == {"messages": [ASK, {**RUDE, "train": False}, PLEASE, YES]}


def test_a_mark_of_somebody_else_says_what_is_so_anyway_or_is_refused() -> None:
    assert value({"messages": [{**ASK, "weight": 0}, {**YES, "weight": 1}]}) == {"messages": [ASK, YES]}
    assert fault({"messages": [{**ASK, "train": True}, YES]}) == (
        "data/x.jsonl:17: message 1 of 'messages' is from the user, but 'train' marks it as trained\n"
        "  -> remove the mark: only assistant messages are trained on"
    )


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        (
            {"weight": 0.5},
            "message 2 of 'messages' has the weight 0.5, but a message is trained on in full or not at all\n"
            "  -> write 0 or 1, true or false, or leave it out",
        ),
        (
            {"train": "no"},
            "message 2 of 'messages' has the train 'no', but a message is trained on in full or not at all\n"
            "  -> write 0 or 1, true or false, or leave it out",
        ),
        (
            {"train": True, "weight": 0},
            "message 2 of 'messages' has 'train' true and 'weight' false, which contradict each other\n"
            "  -> keep one of them",
        ),
        (
            {"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]},
            "message 2 of 'messages' has 'train_detail', which marks parts of it, but a message is trained on in "
            "full or not at all\n  -> mark the whole message with `train`, or remove the marks",
        ),
    ],
)
def test_a_mark_that_cannot_be_obeyed_is_refused(mark: dict[str, Any], text: str) -> None:
    assert fault({"messages": [ASK, {**YES, **mark}]}) == f"data/x.jsonl:17: {text}"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"messages": [ASK, {**YES, "weight": 0}]}, "messages"),
        ({"conversations": [ASK, {**YES, "loss": False}]}, "conversations"),
        ({"prompt": [ASK], "completion": [{**YES, "train": False}]}, "completion"),
        ({"prompt": [ASK], "chosen": [YES], "rejected": [{**RUDE, "train": False}]}, "rejected"),
    ],
)
def test_a_row_of_which_nothing_is_learnt_is_refused(row: dict[str, Any], field: str) -> None:
    assert fault(row) == (
        f"data/x.jsonl:17: no message of '{field}' is trained on: all assistant messages are marked as not trained\n"
        "  -> remove the row, or one of the marks"
    )


def test_marks_stay_in_answers_and_leave_prompts() -> None:
    unmarked = {**RUDE, "train": False}
    marked = {**RUDE, "weight": 0}
    pair = value({"prompt": [ASK], "chosen": [marked, PLEASE, YES], "rejected": [RUDE, PLEASE, RUDE]})
    assert pair == {"prompt": [ASK], "chosen": [unmarked, PLEASE, YES], "rejected": [RUDE, PLEASE, RUDE]}
    assert value({"prompt": [ASK, marked, PLEASE], "completion": [YES]})["prompt"] == [ASK, RUDE, PLEASE]
    asked = prompt_of(normalise(Row({"messages": [ASK, marked, PLEASE, YES]}, PLACE)))
    assert asked.value == {"prompt": [ASK, RUDE, PLEASE]}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_stay_under_their_own_name(name: str) -> None:
    thinking = {**YES, name: "The table says so."}
    assert value({"messages": [ASK, thinking]}) == {"messages": [ASK, thinking]}
    assert value({"messages": [ASK, {**YES, name: None}]}) == {"messages": [ASK, YES]}
    assert fault({"messages": [ASK, {**YES, name: {"text": "x"}}]}) == (
        f"data/x.jsonl:17: the {name} of message 2 of 'messages' is an object, not a string\n"
        "  -> put it in quotes, or remove it"
    )


@pytest.mark.parametrize(
    "system",
    ["Be brief.", ["Be brief."], [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]],
)
def test_a_system_prompt_is_a_text_or_its_parts(system: Any) -> None:
    expected = [{"role": "system", "content": "Be brief."}, ASK, YES]
    assert value({"system": system, "messages": [ASK, YES]}) == {"messages": expected}
    assert value({"messages": [{"role": "system", "content": system}, ASK, YES]}) == {"messages": expected}
    assert value({"messages": [{"role": "developer", "content": system}, ASK, YES]}) == {"messages": expected}
    assert value({"system": system, "question": "Open?", "answer": "Yes."}) == {
        "prompt": [expected[0], {"role": "user", "content": "Open?"}],
        "completion": [{"role": "assistant", "content": "Yes."}],
    }


def test_a_system_prompt_that_is_no_text_is_refused() -> None:
    assert fault({"system": 7, "messages": [ASK, YES]}) == (
        "data/x.jsonl:17: 'system' is a number, not a string\n  -> put it in quotes"
    )


def test_the_assistant_may_begin() -> None:
    turns = [{"from": "gpt", "value": "Harbour desk."}, {"from": "human", "value": ASK["content"]}, YES]
    assert value({"conversations": turns}) == {
        "messages": [{"role": "assistant", "content": "Harbour desk."}, ASK, YES]
    }


def notes(tmp_path: Path, rows: list[dict[str, Any]], accepts: frozenset[Any] = CHAT) -> list[str]:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load([DataSource(source=str(path))], root=tmp_path, accepts=accepts, stage="sft").warnings


def talk(n: int, **message: Any) -> dict[str, Any]:
    return {"messages": [{**ASK, "content": f"Is pier {n} open?"}, {**YES, **message}]}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([talk(1), talk(2)], []),
        ([talk(1) | {"foo": 1, "bar": None, "baz": []}, talk(2)], ["1 row has 'foo', which is not used"]),
        ([talk(1) | {"foo": 1}, talk(2) | {"foo": 0}], ["2 rows have 'foo', which is not used"]),
        ([talk(n, foo="x") for n in range(3)], ["3 rows have 'foo' in their messages, which is not used"]),
        ([talk(1, foo="x", bar=None), talk(2)], ["1 row has 'foo' in its messages, which is not used"]),
        (
            [talk(n, foo="x") | {"id": n + 1, **({"tags": ["a"]} if n else {})} for n in range(3)],
            ["these are not used: 'foo' in messages (3 rows), 'id' (3 rows), 'tags' (2 rows)"],
        ),
        ([talk(1) | {"prompt": "shown only"}], ["1 row has 'prompt', which is not used"]),
        (
            [{"system": "Be kind.", "messages": [{"role": "system", "content": "Be brief."}, ASK, YES]}],
            ["1 row has 'system', which is not used"],
        ),
        ([{"text": "x", "tools": [{"type": "function"}]}], ["1 row has 'tools', which is not used"]),
        (
            [{"prompt": "x", "completion": "y", "tools": [{"type": "function"}]}],
            ["1 row has 'tools', which is not used"],
        ),
        (
            [talk(1) | {f"f{n}": 1 for n in range(10)}],
            ["these are not used: " + ", ".join(f"'f{n}' (1 row)" for n in range(8)) + ", and 2 more"],
        ),
    ],
)
def test_what_is_not_used_is_said_once(tmp_path: Path, rows: list[dict[str, Any]], said: list[str]) -> None:
    assert notes(tmp_path, rows) == said


def test_what_a_reward_function_may_ask_for_is_used(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "2 + 3?", "solution": 5, "text": null, "completions": [1]}\n')
    source, accepts = [DataSource(source=str(path))], frozenset({"prompt"})
    for columns, said in ((True, ["1 row has 'completions', which is not used"]),
                          (False, ["these are not used: 'solution' (1 row), 'completions' (1 row)"])):  # fmt: skip
        found = load(source, root=tmp_path, accepts=accepts, stage="grpo", columns=columns)  # type: ignore[arg-type]
        assert found.warnings == said


@pytest.mark.parametrize("field", ["images", "image", "videos", "video", "audios", "audio"])
def test_rows_that_need_more_than_text_are_refused(field: str) -> None:
    row = {"messages": [ASK, YES]}
    assert fault({**row, field: ["cat.jpg"]}) == (
        f"data/x.jsonl:17: the row has data in '{field}', but only text is supported\n"
        "  -> remove the row, or the field if the text is complete without it"
    )
    assert fault({"prompt": "x", "chosen": "y", "rejected": "z", field: "cat.jpg"}).startswith(
        f"data/x.jsonl:17: the row has data in '{field}', but"
    )
    assert fault({"messages": [{**ASK, field: ["cat.jpg"]}, YES]}) == (
        f"data/x.jsonl:17: message 1 of 'messages' has data in '{field}', but only text is supported\n"
        "  -> remove it, or the row"
    )
    kind = field.removesuffix("s")
    placeholder = {"messages": [{**ASK, "content": f"<{kind}>What is it?"}, YES]}
    assert fault({**placeholder, field: []}) == (
        f"data/x.jsonl:17: the row contains <{kind}>, '{field}' is empty, and only text is supported\n"
        "  -> remove the row"
    )
    assert value({**row, field: [None]}) == row  # a table in which other rows have one
    assert value(placeholder) == placeholder  # of which nothing says that it is more than text


def test_a_noncharacter_of_a_row_is_text() -> None:
    """Templates are followed by marks between such characters; one of a row's own takes nothing of the text with it."""
    text = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    template = ChatTemplate(text, {"eos_token": "</s>"}, ["</s>"])
    template.write([ASK, YES])  # the template is held against its plain rendering at the first of its kind alone
    for stray in ("\ufdd0", "\ufdd1", "\ufdd1\ufdd0"):
        ask, yes = ({**one, "content": f"{stray}1{one['content']}{stray}"} for one in (ASK, YES))
        written = template.write([ask, yes, PLEASE, YES])
        assert written.text == template.ask([ask, yes, PLEASE, YES])
        ((start, end),) = written.turns[0].spans
        assert written.text[start:end].endswith(f"{yes['content']}</s>")
        assert template.write([ask, YES]).text == template.ask([ask, YES])
