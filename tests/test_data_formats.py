"""What a row means, in every format that post-training data comes in."""

from __future__ import annotations

from typing import Any

import pytest

from align.data.formats import Example, normalise, prompt_of
from align.data.rows import RecordPlace, Row
from align.errors import AlignError, Place

PLACE = Place("data/x.jsonl", 17)

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Capital of Peru?"}
LIMA = {"role": "assistant", "content": "Lima."}
CUSCO = {"role": "assistant", "content": "Cusco."}
MORE = {"role": "user", "content": "And of Chile?"}
SANTIAGO = {"role": "assistant", "content": "Santiago."}
TOOL = {"type": "function", "function": {"name": "look_up"}}


def shown(turn: dict[str, str], human: str = "human", gpt: str = "gpt") -> dict[str, str]:
    """A message in the spelling of ShareGPT."""
    names = {"user": human, "assistant": gpt, "system": "system"}
    return {"from": names[turn["role"]], "value": turn["content"]}


def meaning(value: dict[str, Any], format: str = "auto") -> tuple[str, dict[str, Any]]:
    example = normalise(Row(value, PLACE), format)
    assert example.place == PLACE
    return example.kind, example.value


def fault(value: dict[str, Any], format: str = "auto") -> str:
    with pytest.raises(AlignError) as error:
        normalise(Row(value, PLACE), format)
    return str(error.value)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [SYSTEM, ASK, LIMA], "id": 3}, [SYSTEM, ASK, LIMA]),
        ({"system": "Be brief.", "messages": [ASK, LIMA]}, [SYSTEM, ASK, LIMA]),
        ({"messages": [{**ASK, "weight": None, "name": "Ana"}, LIMA]}, [{**ASK, "name": "Ana"}, LIMA]),
        ({"messages": [{**ASK, "content": [{"type": "text", "text": "Capital "}, {"text": "of Peru?"}]}, LIMA]},
         [ASK, LIMA]),
        ({"conversations": [shown(ASK), shown(LIMA)]}, [ASK, LIMA]),
        ({"conversations": [shown(ASK, "user"), shown(LIMA, gpt="chatgpt")], "system": "Be brief."},
         [SYSTEM, ASK, LIMA]),
        ({"conversations": [ASK, LIMA]}, [ASK, LIMA]),
        ({"instruction": "Capital of Peru?", "input": "", "output": "Lima."}, [ASK, LIMA]),
        ({"instruction": "Capital of", "input": "Peru?", "output": "Lima."},
         [{"role": "user", "content": "Capital of\nPeru?"}, LIMA]),
        ({"instruction": "And of Chile?", "output": "Santiago.", "system": "Be brief.",
          "history": [["Capital of Peru?", "Lima."]]}, [SYSTEM, ASK, LIMA, MORE, SANTIAGO]),
        ({"prompt": "shown only", "messages": [ASK, LIMA]}, [ASK, LIMA]),
        ({"messages": [ASK, LIMA], "text": None, "prompt": None, "completion": None}, [ASK, LIMA]),
    ],
)  # fmt: skip
def test_chats(row: dict[str, Any], messages: list[dict[str, str]]) -> None:
    assert meaning(row) == ("chat", {"messages": messages})


def test_tools_stay_with_the_messages_and_calls_need_no_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look_up"}}]}
    result = {"role": "tool", "content": ""}
    kind, value = meaning({"messages": [ASK, call, result, LIMA], "tools": '[{"type": "function"}]'})
    assert (kind, value["tools"]) == ("chat", [{"type": "function"}])
    assert value["messages"] == [ASK, {**call, "content": ""}, result, LIMA]
    assert meaning({"prompt": [ASK], "chosen": [LIMA], "rejected": [CUSCO], "tools": [TOOL]})[1]["tools"] == [TOOL]
    assert fault({"messages": [ASK, LIMA], "tools": "{"}) == (
        "data/x.jsonl:17: 'tools' is not a list\n  -> give a list of JSON schemas, or the JSON text of one"
    )


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "Q: 1+1? A:", "completion": " 2"}, "Q: 1+1? A:", " 2"),
        ({"prompt": "1+1?", "response": "2"}, "1+1?", "2"),
        ({"question": "1+1?", "answer": "2", "content": "ignored"}, "1+1?", "2"),
        ({"prompt": [ASK], "completion": [LIMA]}, [ASK], [LIMA]),
        ({"prompt": "Capital of Peru?", "completion": [LIMA]}, [ASK], [LIMA]),
        ({"prompt": [ASK], "completion": "Lima."}, [ASK], [LIMA]),
        ({"prompt": "Capital of Peru?", "completion": "Lima.", "system": "Be brief."}, [SYSTEM, ASK], [LIMA]),
    ],
)
def test_prompts_with_completions_keep_their_form(row: dict[str, Any], prompt: Any, completion: Any) -> None:
    assert meaning(row) == ("prompt_completion", {"prompt": prompt, "completion": completion})


def test_texts_keep_every_blank() -> None:
    assert meaning({"text": "  a passage \n"}) == ("text", {"text": "  a passage \n"})
    assert meaning({"content": "a passage", "url": "x"}) == ("text", {"text": "a passage"})


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Q: 1+1? A:", "id": 3}, "Q: 1+1? A:"),
        ({"prompt": "1+1?", "completion": None}, "1+1?"),
        ({"prompt": [ASK]}, [ASK]),
        ({"prompt": ASK}, [ASK]),
        ({"prompt": [ASK, LIMA, MORE]}, [ASK, LIMA, MORE]),
        ({"prompt": [shown(ASK)]}, [ASK]),
        ({"prompt": [ASK], "system": "Be brief."}, [SYSTEM, ASK]),
        ({"prompt": "Capital of Peru?", "system": "Be brief."}, [SYSTEM, ASK]),
        ({"prompt": "Capital of Peru?", "system": " "}, "Capital of Peru?"),
    ],
)
def test_prompts_alone(row: dict[str, Any], prompt: Any) -> None:
    assert meaning(row) == ("prompt", {"prompt": prompt})
    assert meaning(row, "prompt") == ("prompt", {"prompt": prompt})


def test_a_row_that_has_an_answer_is_no_prompt_alone() -> None:
    """The first format that fits is taken, and `prompt` is the last of all."""
    assert meaning({"prompt": "1+1?", "text": "1+1? 2"}) == ("text", {"text": "1+1? 2"})
    assert meaning({"prompt": "1+1?", "response": "2"})[0] == "prompt_completion"
    assert meaning({"prompt": "1+1?", "chosen": "2", "rejected": "3"})[0] == "preference"
    assert meaning({"prompt": "1+1?", "response": "2"}, "prompt") == ("prompt", {"prompt": "1+1?"})


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"messages": [SYSTEM, ASK, LIMA]}, [SYSTEM, ASK]),
        ({"messages": [ASK, LIMA, MORE, SANTIAGO]}, [ASK, LIMA, MORE]),
        ({"instruction": "Capital of Peru?", "output": "Lima."}, [ASK]),
        ({"prompt": "1+1?", "completion": "2"}, "1+1?"),
        ({"prompt": [ASK], "completion": [LIMA]}, [ASK]),
        ({"prompt": "1+1?", "chosen": "2", "rejected": "3", "margin": 1}, "1+1?"),
        ({"chosen": [ASK, LIMA], "rejected": [ASK, CUSCO]}, [ASK]),
        ({"prompt": [ASK]}, [ASK]),
    ],
)
def test_what_a_row_asks(row: dict[str, Any], prompt: Any) -> None:
    asked = prompt_of(normalise(Row(row, PLACE)))
    assert asked == Example("prompt", {"prompt": prompt}, PLACE)


def test_tools_stay_with_what_is_asked() -> None:
    asked = prompt_of(normalise(Row({"messages": [ASK, LIMA], "tools": [TOOL]}, PLACE)))
    assert asked.value == {"prompt": [ASK], "tools": [TOOL]}


def test_a_text_asks_nothing() -> None:
    text = normalise(Row({"text": "a passage"}, PLACE))
    assert prompt_of(text) == text


def test_an_answer_to_nothing_is_refused_where_it_is_asked() -> None:
    alone = normalise(Row({"messages": [LIMA]}, PLACE))
    assert alone.kind == "chat"  # to learn an answer by itself is no fault
    with pytest.raises(AlignError) as error:
        prompt_of(alone)
    assert str(error.value) == "data/x.jsonl:17: the row has an answer but no prompt\n  -> remove it"


PAIR = {"prompt": [ASK], "chosen": [LIMA], "rejected": [CUSCO]}
LONG = {"prompt": [ASK, LIMA, MORE], "chosen": [SANTIAGO], "rejected": [CUSCO]}


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        (PAIR, PAIR),
        ({"prompt": "1+1?", "chosen": "2", "rejected": "3"}, {"prompt": "1+1?", "chosen": "2", "rejected": "3"}),
        ({"prompt": "Paris", "chosen": "Paris is it", "rejected": "Paris no"},
         {"prompt": "Paris", "chosen": "Paris is it", "rejected": "Paris no"}),
        ({"question": "Capital of Peru?", "system": "Be brief.", "chosen": "Lima.", "rejected": "Cusco."},
         {**PAIR, "prompt": [SYSTEM, ASK]}),
        ({"prompt": "Capital of Peru?", "chosen": [LIMA], "rejected": [CUSCO]}, PAIR),
        # ultrafeedback: the answers repeat the prompt, and `messages` repeats the chosen one
        ({"prompt": "Capital of Peru?", "chosen": [ASK, LIMA], "rejected": [ASK, CUSCO], "messages": [ASK, LIMA]},
         PAIR),
        ({"chosen": [ASK, LIMA], "rejected": [ASK, CUSCO], "messages": [ASK, LIMA]}, PAIR),
        ({"prompt": "Capital of Peru?", "chosen": [SYSTEM, ASK, LIMA], "rejected": [SYSTEM, ASK, CUSCO]},
         {**PAIR, "prompt": [SYSTEM, ASK]}),
        ({"prompt": [ASK], "chosen": [ASK, LIMA], "rejected": [ASK, CUSCO]}, PAIR),
        # the prompt stands in the answers only
        ({"chosen": [ASK, LIMA], "rejected": [ASK, CUSCO]}, PAIR),
        ({"chosen": [ASK, LIMA, MORE, SANTIAGO], "rejected": [ASK, LIMA, MORE, CUSCO]}, LONG),
        ({"chosen": [ASK, LIMA, MORE, SANTIAGO], "rejected": [ASK, LIMA, {**MORE, "content": "Why?"}, CUSCO]},
         {"prompt": [ASK], "chosen": [LIMA, MORE, SANTIAGO], "rejected": [LIMA, {**MORE, "content": "Why?"}, CUSCO]}),
        ({"chosen": [ASK, LIMA, SANTIAGO], "rejected": [ASK, LIMA, CUSCO]},
         {"prompt": [ASK], "chosen": [LIMA, SANTIAGO], "rejected": [LIMA, CUSCO]}),
        # ShareGPT
        ({"conversations": [shown(ASK)], "chosen": shown(LIMA), "rejected": shown(CUSCO)}, PAIR),
        ({"conversations": [shown(ASK), shown(LIMA), shown(MORE)], "chosen": shown(SANTIAGO), "rejected": shown(CUSCO)},
         LONG),
        ({"messages": [ASK], "chosen": LIMA, "rejected": CUSCO}, PAIR),
        # Alpaca
        ({"instruction": "Capital of", "input": "Peru?", "chosen": "Lima.", "rejected": "Cusco."},
         {**PAIR, "prompt": [{"role": "user", "content": "Capital of\nPeru?"}]}),
        # hh-rlhf: two transcripts that part somewhere inside the last answer
        ({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: 1+1?\n\nAssistant: It is 2.",
          "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: 1+1?\n\nAssistant: It is 3."},
         {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: 1+1?\n\nAssistant:",
          "chosen": " It is 2.", "rejected": " It is 3."}),
        ({"prompt": "Human: 1+1?\n\nAssistant:", "chosen": "Human: 1+1?\n\nAssistant: 2",
          "rejected": "Human: 1+1?\n\nAssistant: 3"},
         {"prompt": "Human: 1+1?\n\nAssistant:", "chosen": " 2", "rejected": " 3"}),
        ({"chosen": "What is 1+1?\nIt is 2", "rejected": "What is 1+1?\nIt is 3"},
         {"prompt": "What is 1+1?\n", "chosen": "It is 2", "rejected": "It is 3"}),
    ],
)  # fmt: skip
def test_preferences(row: dict[str, Any], pair: dict[str, Any]) -> None:
    assert meaning(row) == ("preference", pair)


@pytest.mark.parametrize("margin", [1, 0.5, 0, -2.0])
def test_a_margin_stays_with_its_pair(margin: float) -> None:
    assert meaning({**PAIR, "margin": margin}) == ("preference", {**PAIR, "margin": float(margin)})
    assert type(meaning({**PAIR, "margin": margin})[1]["margin"]) is float
    assert meaning({**PAIR, "margin": None}) == ("preference", PAIR)


@pytest.mark.parametrize(
    ("margin", "is_what"),
    [
        ("half", "a string"),
        (True, "true or false"),
        ([1], "a list"),
        (float("nan"), "a number"),
        (float("inf"), "a number"),
    ],
)
def test_a_margin_must_be_a_finite_number(margin: Any, is_what: str) -> None:
    assert fault({**PAIR, "margin": margin}) == (
        f"data/x.jsonl:17: 'margin' is {is_what}, not a finite number\n"
        "  -> say by how much the chosen answer is better, or leave it out"
    )


def test_a_format_that_is_named_is_the_only_one_tried() -> None:
    row = {"messages": [ASK, LIMA], "chosen": [ASK, LIMA], "rejected": [ASK, CUSCO], "prompt": "Capital of Peru?"}
    assert meaning(row)[0] == "preference"
    assert meaning(row, "messages") == ("chat", {"messages": [ASK, LIMA]})
    assert fault(row, "alpaca") == (
        "data/x.jsonl:17: the row has the fields 'messages', 'chosen', 'rejected', 'prompt', which is not the format "
        "'alpaca'\n  -> give instruction + output, or remove `format`"
    )


GIVE = "give messages, prompt + completion, instruction + output, conversations, text, or prompt + chosen + rejected"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            {"foo": 1, "bar": 2},
            f"the row has the fields 'foo', 'bar', which is no known format\n  -> {GIVE}",
        ),
        ({"prompt": None}, f"the row has the field 'prompt' (null), which is no known format\n  -> {GIVE}"),
        ({"prompt": " \n"}, "'prompt' is empty\n  -> fill it in, or remove the row"),
        ({"prompt": 7}, "'prompt' is a number, not a string or messages\n  -> put it in quotes"),
        ({"prompt": []}, "'prompt' has no messages\n  -> add messages, or remove the row"),
        (
            {"prompt": [ASK, LIMA]},
            "'prompt' ends with an assistant message, so there is nothing to answer\n  -> end it with a user message",
        ),
        ({"messages": None}, f"the row has the field 'messages' (null), which is no known format\n  -> {GIVE}"),
        ({}, f"the row has no fields\n  -> {GIVE}"),
        (
            dict.fromkeys("abcdefghij", 1),
            "the row has the fields 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h' and 2 more, which is no known format\n"
            f"  -> {GIVE}",
        ),
        (
            {"messages": "hello"},
            '\'messages\' is a string, not a list of messages\n  -> give [{"role": "user", "content": "..."}, ...]',
        ),
        ({"messages": []}, "'messages' has no messages\n  -> add messages, or remove the row"),
        (
            {"messages": [ASK]},
            "the last message of 'messages' is from the user, so there is no answer to train on\n"
            "  -> end with an assistant message, or remove the row",
        ),
        (
            {"messages": [ASK, "Lima."]},
            'message 2 of \'messages\' is a string, not an object\n  -> give {"role": "user", "content": "..."}',
        ),
        (
            {"messages": [{"role": "usr", "content": "x"}, LIMA]},
            "message 1 of 'messages' has the unknown role 'usr'\n  -> did you mean 'user'?",
        ),
        (
            {"messages": [{"content": "x"}, LIMA]},
            "message 1 of 'messages' has no role\n  -> give one of system, user, assistant, tool",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "content": None}]},
            "message 2 of 'messages' has no content\n  -> write it, or remove the row",
        ),
        (
            {"conversations": [{"from": "human", "value": " \n"}, LIMA]},
            "message 1 of 'conversations', the user's prompt, is empty\n  -> write it, or remove the row",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "content": ""}]},
            "message 2 of 'messages', the assistant's answer, is empty\n  -> write it, or remove the row",
        ),
        (
            {"messages": [{"role": "user", "content": 7}, LIMA]},
            "the content of message 1 of 'messages' is a number, not a string\n  -> put it in quotes",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, LIMA]},
            "message 1 of 'messages' has a part of type 'image', but only text is supported\n"
            "  -> keep only the text parts, or remove the row",
        ),
        ({"instruction": "x", "output": 3}, "'output' is a number, not a string\n  -> put it in quotes"),
        ({"instruction": "x", "output": " "}, "'output' is empty\n  -> fill it in, or remove the row"),
        (
            {"instruction": "x", "output": "y", "history": ["q", "a"]},
            '\'history\' is not a list of pairs of strings\n  -> give [["question", "answer"], ...]',
        ),
        ({"text": ""}, "'text' is empty\n  -> fill it in, or remove the row"),
        ({"prompt": " ", "completion": "x"}, "'prompt' is empty\n  -> fill it in, or remove the row"),
        ({"question": "x", "answer": "\n"}, "'answer' is empty\n  -> fill it in, or remove the row"),
        ({"prompt": 1, "completion": "x"}, "'prompt' is a number, not a string or messages\n  -> put it in quotes"),
        (
            {"prompt": [ASK, LIMA], "completion": [LIMA]},
            "'prompt' ends with an assistant message, so there is nothing to answer\n  -> end it with a user message",
        ),
        (
            {"prompt": [ASK], "completion": [ASK, LIMA]},
            "the first message of 'completion' is from the user, not from the assistant\n"
            "  -> start and end an answer with an assistant message",
        ),
        (
            {"prompt": "x", "chosen": "y", "rejected": " "},
            "'rejected' is empty\n  -> fill it in, or remove the row",
        ),
        (
            {"chosen": "I like it", "rejected": "I hate it"},
            "the row has no prompt, and 'chosen' and 'rejected' have none in common\n  -> add a field `prompt`",
        ),
        (
            {"chosen": [ASK, LIMA], "rejected": [MORE, LIMA]},
            "the row has no prompt, and 'chosen' and 'rejected' have none in common\n  -> add a field `prompt`",
        ),
        (
            {"prompt": "Something else?", "chosen": [ASK, LIMA], "rejected": [ASK, CUSCO]},
            "'chosen' and 'rejected' start with turns that differ from the row's prompt\n"
            "  -> remove those turns, or the field `prompt`",
        ),
    ],
)
def test_faults(row: dict[str, Any], text: str) -> None:
    assert fault(row) == f"data/x.jsonl:17: {text}"


def test_a_row_of_a_table_is_named_by_its_number() -> None:
    with pytest.raises(AlignError) as error:
        normalise(Row({"text": ""}, RecordPlace("x.parquet", row=12)))
    assert str(error.value) == "x.parquet: row 12: 'text' is empty\n  -> fill it in, or remove the row"


def test_the_canonical_text_follows_the_content_and_nothing_else() -> None:
    one = normalise(Row({"messages": [{"content": "Capital of Peru?", "role": "user"}, LIMA], "id": 1}, PLACE))
    other = normalise(Row({"conversations": [shown(ASK), shown(LIMA)]}, Place("elsewhere", 1)))
    assert one.canonical() == other.canonical()
    assert one.canonical() != normalise(Row({"messages": [ASK, CUSCO]}, PLACE)).canonical()
