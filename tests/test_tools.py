"""Tools, calls and their results: one form whatever the spelling, JSON text parsed once, Arrow's nulls taken out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.data.formats import normalise
from align.data.rows import Row
from align.data.sources import DataSource, read
from align.errors import AlignError, Place

PLACE = Place("data/x.jsonl", 17)
ASK = {"role": "user", "content": "High tide in Emden?"}
RESULT = {"role": "tool", "name": "tide", "content": "04:12"}
ANSWER = {"role": "assistant", "content": "At 04:12."}
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Emden"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}


def messages(*turns: dict[str, Any], **row: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = normalise(Row({"messages": list(turns), **row}, PLACE)).value["messages"]
    return found


def fault(*turns: dict[str, Any], **row: Any) -> str:
    with pytest.raises(AlignError) as error:
        messages(*turns, **row)
    return str(error.value)


def calling(**message: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, **message}


@pytest.mark.parametrize(
    "call",
    [
        calling(tool_calls=[CALL]),
        calling(tool_calls=[{**CALL, "function": {"name": "tide", "arguments": '{"port": "Emden"}'}}]),
        calling(tool_calls=[{"name": "tide", "arguments": {"port": "Emden"}}]),
        calling(tool_calls=json.dumps([CALL])),
        calling(function_call={"name": "tide", "arguments": '{"port": "Emden"}'}),  # OpenAI's old form
        {"from": "function_call", "value": '{"name": "tide", "arguments": {"port": "Emden"}}'},  # LLaMA-Factory
        {"role": "tool_call", "content": '[{"name": "tide", "arguments": "{\\"port\\": \\"Emden\\"}"}]'},  # ms-swift
    ],
)
def test_a_call_has_one_form_and_its_arguments_are_an_object(call: dict[str, Any]) -> None:
    assert messages(ASK, call, RESULT, ANSWER) == [ASK, CALLING, RESULT, ANSWER]


def test_what_a_call_was_given_with_stays() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": '{"port": null, "at": [null]}'}}
    said = messages(ASK, {"role": "assistant", "content": "Let me see.", "tool_calls": [call]}, RESULT, ANSWER)[1]
    arguments = {"port": None, "at": [None]}  # nulls that somebody wrote
    called = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": arguments}}
    assert said == {"role": "assistant", "content": "Let me see.", "tool_calls": [called]}
    blank = calling(tool_calls=[{"function": {"name": "now", "arguments": ""}}])
    assert messages(ASK, blank, ANSWER)[1]["tool_calls"] == [{"function": {"name": "now", "arguments": {}}}]


def test_words_in_the_place_of_a_call_stay_words() -> None:
    said = messages(ASK, {"from": "function_call", "value": "tide(Emden)"}, RESULT, ANSWER)[1]
    assert said == {"role": "assistant", "content": "tide(Emden)"}


@pytest.mark.parametrize("role", ["function", "function_response", "observation", "tool_response", "ipython"])
def test_a_result_has_one_role(role: str) -> None:
    assert messages(ASK, CALLING, {**RESULT, "role": role}, ANSWER)[2] == RESULT


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            {"function": {"name": "tide", "arguments": '{"port": '}},
            "the arguments of call 1 of message 2 of 'messages', to 'tide', are not a JSON object\n"
            '  -> give {"name": value, ...}, or the JSON text of it',
        ),
        (
            {"function": {"name": "tide", "arguments": "[1]"}},
            "the arguments of call 1 of message 2 of 'messages', to 'tide', are not a JSON object\n"
            '  -> give {"name": value, ...}, or the JSON text of it',
        ),
        (
            {"function": {"arguments": {}}},
            "call 1 of message 2 of 'messages' does not name a function\n"
            '  -> give {"name": ..., "arguments": {...}}',
        ),
        (
            "tide",
            "call 1 of message 2 of 'messages' does not name a function\n"
            '  -> give {"name": ..., "arguments": {...}}',
        ),
    ],
)  # fmt: skip
def test_a_call_that_is_none_is_refused(call: Any, text: str) -> None:
    assert fault(ASK, calling(tool_calls=[call]), ANSWER) == f"data/x.jsonl:17: {text}"


SCHEMA = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "default": None}}}


@pytest.mark.parametrize(
    "tools",
    [
        {"tools": [SCHEMA]},
        {"tools": json.dumps([SCHEMA])},
        {"tools": [json.dumps(SCHEMA)]},
        {"functions": [SCHEMA["function"]]},  # OpenAI's old form
    ],
)
def test_tools_have_one_form(tools: dict[str, Any]) -> None:
    assert normalise(Row({"messages": [ASK, ANSWER], **tools}, PLACE)).value["tools"] == [SCHEMA]


def test_a_tool_that_is_no_object_is_refused() -> None:
    assert fault(ASK, ANSWER, tools=[SCHEMA, "tide"]) == (
        "data/x.jsonl:17: tool 2 of 'tools' is not an object\n  -> give its JSON schema, or the JSON text of it"
    )


def schema(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": f"{name} table", "parameters": parameters}}


def row(ask: str, name: str, arguments: dict[str, Any], **properties: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    turns = [
        {"role": "user", "content": ask},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": name, "content": "04:12"},
        {"role": "assistant", "content": "So it is."},
    ]
    return {"messages": turns, "tools": [schema(name, **properties)]}


def test_rows_come_out_of_parquet_as_they_were_written(tmp_path: Path) -> None:
    """Arrow gives every row the fields of all others, as nulls."""
    import pyarrow
    from pyarrow import parquet

    rows = [
        row("High tide in Emden?", "tide", {"port": "Emden"}, port={"type": "string"}),
        row("Is pier 4 free?", "pier", {"pier": 4}, pier={"type": "integer", "enum": [4, None]}),
        row("What time is it?", "now", {}),
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    found = list(read(DataSource(source=str(tmp_path / "x.parquet")), root=tmp_path))
    raw = found[0].value["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert raw == {"port": "Emden", "pier": None}, "as Arrow has it"
    assert [normalise(each).value for each in found] == rows


def test_columns_for_reward_functions_keep_their_nulls(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    from align.data.checks import load

    rows = [{"prompt": "2 + 3?", "known": {"a": 5}}, {"prompt": "2 + b?", "known": {"b": 1}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    source = [DataSource(source=str(tmp_path / "x.parquet"))]
    table = load(source, root=tmp_path, accepts=frozenset({"prompt"}), stage="grpo", columns=True)
    assert [example.value["columns"] for example in table.examples] == [
        {"known": {"a": 5, "b": None}},
        {"known": {"a": None, "b": 1}},
    ]
