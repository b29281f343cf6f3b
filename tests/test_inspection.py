"""`align data show`, `check` and `convert`: what files hold, every fault at its line, and the same rows again."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from rich.console import Console

from align.data.sources import DataSource
from align.errors import AlignError
from align.inspection import convert, look, survey, words
from align.inspection.look import How

ASK = {"role": "user", "content": "Capital of Peru?"}
LIMA = {"role": "assistant", "content": "Lima."}
CUSCO = {"role": "assistant", "content": "Cusco."}
TALK = [ASK, LIMA, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "look_up", "arguments": {"of": "Peru"}}}]}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zst(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def parquet_of(*rows: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(list(rows)), sink)
    return bytes(sink.getvalue())


def write(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


GOOD: dict[str, tuple[bytes, str, str]] = {  # by file name: content, format, kind
    "chats.jsonl": (jsonl({"messages": [ASK, LIMA]}, {"messages": TALK}), "messages", "chat"),
    "system.ndjson": (jsonl({"messages": [{"role": "system", "content": "Be brief."}, ASK, LIMA]}), "messages", "chat"),
    "tools.jsonl": (
        jsonl({"messages": [ASK, CALL, {"role": "tool", "content": "Lima"}, LIMA], "tools": TOOLS}),
        "messages",
        "chat",
    ),
    "nested.parquet": (parquet_of({"messages": [ASK, LIMA]}, {"messages": TALK}), "messages", "chat"),
    "sharegpt.json": (
        json.dumps([{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}]).encode(),
        "sharegpt",
        "chat",
    ),
    "alpaca.json": (b'{"data": [{"instruction": "Add", "input": "2 2", "output": "4"}]}', "alpaca", "chat"),
    "dolly.jsonl": (
        jsonl({"instruction": "Add", "context": "2 2", "response": "4", "category": "maths"}),
        "alpaca",
        "chat",
    ),
    "pairs.csv": (b'prompt,completion\n"one, two",three\nfour,"five\nsix"\n', "prompt_completion", "prompt_completion"),
    "questions.tsv": (b"question\tanswer\nCapital?\tLima\n", "prompt_completion", "prompt_completion"),
    "meta_math.jsonl.gz": (
        gzip.compress(jsonl({"query": "1 + 1", "response": "2"}), mtime=0),
        "prompt_completion",
        "prompt_completion",
    ),
    "packed.jsonl.zst": (zst(jsonl({"problem": "1 + 1", "solution": "2"})), "prompt_completion", "prompt_completion"),
    "prompts.jsonl": (jsonl({"prompt": "Tell me a joke."}), "prompt", "prompt"),
    "passages.txt": (b"One passage.\n\nAnother one.\n", "text", "text"),
    "text.parquet": (parquet_of({"text": "One passage."}, {"text": "Another."}), "text", "text"),
    "dpo.jsonl": (jsonl({"prompt": [ASK], "chosen": [LIMA], "rejected": [CUSCO]}), "preference", "preference"),
    "implicit.jsonl": (jsonl({"chosen": [ASK, LIMA], "rejected": [ASK, CUSCO]}), "preference", "preference"),
    "margins.jsonl": (
        jsonl({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2.5}),
        "preference",
        "preference",
    ),
    "exchange.parquet": (
        parquet_of({"question": "q", "response_j": "a", "response_k": "b"}),
        "preference",
        "preference",
    ),
    "kto.jsonl": (jsonl({"prompt": "p", "completion": "c", "label": False}), "unpaired", "unpaired"),
    "kto_tag.jsonl": (jsonl({"messages": [ASK, LIMA], "kto_tag": True}), "unpaired", "unpaired"),
}


TWO = {"chats.jsonl", "nested.parquet", "pairs.csv", "passages.txt", "text.parquet"}


@pytest.mark.parametrize("name", GOOD)
def test_every_format_is_recognised_by_itself(name: str) -> None:
    content, format, kind = GOOD[name]
    found = look.over(write(name, content), How())
    assert (found.faults, set(found.survey.formats), set(found.survey.kinds)) == ([], {format}, {kind})
    assert found.survey.rows == (2 if name in TWO else 1)


PC = {"prompt": "a", "completion": "b"}
BAD: dict[str, tuple[str, bytes, str]] = {  # by what is wrong: file, content, place and sentence
    "an unknown field": (
        "x.jsonl",
        jsonl(PC, {"x": 1}),
        "x.jsonl:2: the row has the field 'x', which is no known format",
    ),
    "no field": ("x.jsonl", jsonl(PC) + b"{}\n", "x.jsonl:2: the row has no fields"),
    "a list": ("x.jsonl", jsonl(PC) + b"[1]\n", "x.jsonl:2: the row is a list, not an object"),
    "a string": ("x.jsonl", jsonl(PC) + b'"x"\n', "x.jsonl:2: the row is a string, not an object"),
    "a number": ("x.jsonl", b"7\n", "x.jsonl:1: the row is a number, not an object"),
    "null": ("x.jsonl", jsonl(PC) + b"null\n", "x.jsonl:2: the row is null, not an object"),
    "cut": (
        "x.jsonl",
        jsonl(PC, PC)[:-9],
        "x.jsonl:2:17: malformed JSON: the string that starts here has no closing quote",
    ),
    "a comma too many": ("x.jsonl", jsonl(PC) + b'{"prompt": "a",}\n', "x.jsonl:2:1"),
    "single quotes": (
        "x.jsonl",
        b"{'prompt': 'a'}\n",
        "x.jsonl:1:2: malformed JSON: expected a field name in double quotes",
    ),
    "two objects": (
        "x.jsonl",
        b'{"prompt": "a"} {"prompt": "b"}\n',
        "x.jsonl:1:17: malformed JSON: expected the end of the line",
    ),
    "a field twice": (
        "x.jsonl",
        b'{"prompt": "a", "prompt": "b"}\n',
        "x.jsonl:1: the row has the field 'prompt' twice",
    ),
    "half a character": ("x.jsonl", b'{"text": "\\ud800"}\n', "x.jsonl:1: the row contains half of a surrogate pair"),
    "Latin-1": ("x.jsonl", jsonl(PC) + '{"text": "é"}\n'.encode("latin-1"), "x.jsonl:2: the byte 0xe9 is not UTF-8"),
    "UTF-16": ("x.jsonl", '{"text": "a"}\n'.encode("utf-16"), "x.jsonl: the file is UTF-16, not UTF-8"),
    "a NUL": ("x.jsonl", jsonl(PC) + b'{"text": "a\0"}\n', "x.jsonl:2: the line contains NUL characters"),
    "nothing": ("x.jsonl", b"", "x.jsonl: the file is empty"),
    "blank lines": ("x.jsonl", b"\n\n", "x.jsonl: the file has no rows"),
    "an array that is not closed": ("x.json", b'[{"text": "a"},\n {"text": "b"}\n', "x.json:3:1: malformed JSON"),
    "an array with a comma too many": (
        "x.json",
        b'[{"text": "a"},\n]',
        "x.json:1:15: malformed JSON: there is an extra comma",
    ),
    "two lists": ("x.json", b'{"train": [], "test": []}', "x.json:1: the file is one object with 2 lists"),
    "a cell too few": (
        "x.csv",
        b"prompt,completion\na,b\nc\n",
        "x.csv:3: the record has 1 cell, but the header has 2 columns",
    ),
    "a cell too many": (
        "x.csv",
        b"prompt,completion\na,b,c\n",
        "x.csv:2: the record has 3 cells, but the header has 2",
    ),
    "a quote that is not closed": ("x.csv", b'prompt,completion\n"a,b\n', "x.csv:2: the record is not well-formed"),
    "a column twice": ("x.csv", b"prompt,prompt\na,b\n", "x.csv:1: the header has the column 'prompt' twice"),
    "no Parquet": ("x.parquet", b"PAR1 no", "x.parquet: the file is not readable Parquet"),
    "a cut gzip file": (
        "x.jsonl.gz",
        gzip.compress(jsonl(PC) * 99, mtime=0)[:40],
        "x.jsonl.gz: the gzip file is incomplete or damaged",
    ),
    "a cut zstd file": ("x.jsonl.zst", zst(jsonl(PC) * 99)[:20], "x.jsonl.zst: the zstd file is incomplete or damaged"),
    "another ending": ("x.xlsx", b"x", "x.xlsx: the file extension '.xlsx' is not supported"),
    "messages that are no list": (
        "x.jsonl",
        jsonl({"messages": "Hi"}),
        "x.jsonl:1: 'messages' is a string, not a list of messages",
    ),
    "no messages": ("x.jsonl", jsonl({"messages": []}), "x.jsonl:1: 'messages' has no messages"),
    "no role": ("x.jsonl", jsonl({"messages": [{"content": "a"}]}), "x.jsonl:1: message 1 of 'messages' has no role"),
    "an unknown role": (
        "x.jsonl",
        jsonl({"messages": [ASK, {**LIMA, "role": "asistant"}]}),
        "x.jsonl:1: message 2 of 'messages' has the unknown role 'asistant'",
    ),
    "no content": (
        "x.jsonl",
        jsonl({"messages": [{"role": "user"}, LIMA]}),
        "x.jsonl:1: message 1 of 'messages' has no content",
    ),
    "an empty answer": (
        "x.jsonl",
        jsonl({"messages": [ASK, {**LIMA, "content": " "}]}),
        "x.jsonl:1: message 2 of 'messages', the assistant's answer, is empty",
    ),
    "an empty completion": ("x.jsonl", jsonl(PC, {**PC, "completion": ""}), "x.jsonl:2: 'completion' is empty"),
    "the user at the end": (
        "x.jsonl",
        jsonl({"messages": [*TALK, ASK]}),
        "x.jsonl:1: the last message of 'messages' is from the user",
    ),
    "no preference": (
        "x.jsonl",
        jsonl({"prompt": "p", "chosen": "a", "rejected": "a "}),
        "x.jsonl:1: 'chosen' and 'rejected' are identical",
    ),
    "a margin in words": (
        "x.jsonl",
        jsonl({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "big"}),
        "x.jsonl:1: 'margin' is a string, not a finite number",
    ),
    "an image": (
        "x.jsonl",
        jsonl({"messages": [ASK, LIMA], "images": ["a.png"]}),
        "x.jsonl:1: the row has data in 'images', but only text is supported",
    ),
    "tools that are no list": (
        "x.jsonl",
        jsonl({"messages": [ASK, LIMA], "tools": "look_up"}),
        "x.jsonl:1: 'tools' is not a list",
    ),
    "a pair without its other side": ("x.jsonl", jsonl({"prompt": "p", "chosen": "a"}), "x.jsonl:1: stage 'sft' needs"),
    "an answer to nobody": (
        "x.jsonl",
        jsonl({"completion": "a"}),
        "x.jsonl:1: the row has the field 'completion', which is no known format",
    ),
}


@pytest.mark.parametrize("wrong", BAD)
def test_a_broken_file_is_told_with_its_line(wrong: str) -> None:
    name, content, sentence = BAD[wrong]
    found = look.over(write(name, content), How(stage="sft" if "pair" in wrong else None))
    assert len(found.faults) == 1, [str(fault) for fault in found.faults]
    assert str(found.faults[0]).startswith(sentence)
    assert found.faults[0].remedy


def test_there_are_as_many_as_are_promised() -> None:
    assert len(GOOD) >= 15
    assert len(BAD) >= 40


def test_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"messages": [ASK, LIMA], "id": 1},
        {"messages": TALK},
        {"messages": [ASK, LIMA]},
        {"messages": [ASK, {**LIMA, "content": "LIMA"}]},
    ]
    found = look.over(write("x.jsonl", jsonl(*rows) + b"{\n"), How(), row=2)
    one = found.survey
    assert (one.rows, one.bad, one.turns, one.said.repeated(), one.bare.repeated()) == (4, 1, {1: 3, 2: 1}, 1, 2)
    assert found.warnings == [
        "1 of 4 rows are duplicates (the first: x.jsonl:3 repeats x.jsonl:1)",
        "1 more differs from another only in case, spaces or punctuation (the first: x.jsonl:4 is as x.jsonl:3)",
        "1 row has 'id', which is not used",
    ]
    assert {name: list(lengths.values) for name, lengths in one.lengths.items()} == {
        "prompt": [16, 21, 16, 16],
        "answers": [5, 9, 5, 4],
    }
    assert (one.lengths["answers"].longest, str(one.lengths["answers"].place)) == (9, "x.jsonl:2")
    assert found.trains == {"sft": False, "sdft": False, "ppo": True, "rloo": True, "grpo": True}
    assert found.row is not None
    out = Console(width=100, highlight=False)
    for shown in (*words.summary(found), *words.row(found.row, 2, None)):
        out.print(shown)
    said = capsys.readouterr().out
    for text in (
        "x.jsonl: 4 rows\n",
        "turns       1 answer in 3 (75 %), 2 answers in 1 (25 %)",
        "row 2 (x.jsonl:2)\nuser: Capital of Peru?\nassistant: Lima.\nuser: Sure?\nassistant: Yes.",
    ):
        assert text in said, said


def test_bars_and_quantiles() -> None:
    found = look.over(write("x.jsonl", jsonl(*({"text": "x" * n} for n in (1, 2, 3, 4, 100, 1000)))), How())
    lengths = found.survey.lengths["text"]
    assert [tuple(bar) for bar in lengths.histogram()] == [
        *((0, 8, 4), (8, 16, 0), (16, 32, 0), (32, 64, 0), (64, 128, 1), (128, 256, 0), (256, 512, 0), (512, 1024, 1)),
    ]
    assert [lengths.quantile(share) for share in (0.5, 0.95, 0.01, 1)] == [3, 1000, 1, 1000]


def test_tokens_are_those_that_are_trained_on() -> None:
    rows = jsonl({"messages": [ASK, LIMA]}, {"prompt": "a b", "completion": " c"}, {"text": "a b c d e"})
    found = look.over(write("x.jsonl", rows), How(model="lab", max_length=8), row=1)
    from align.data import encode
    from align.data.formats import normalise
    from align.data.rows import Row
    from align.data.tokenizer import TextTokenizer
    from align.errors import Place
    from align.lab import MODEL_DIR

    tokenizer = TextTokenizer.of_folder(MODEL_DIR)
    assert tokenizer is not None and found.tokens is not None
    values = [normalise(Row(json.loads(line), Place("x"))).value for line in rows.splitlines()]
    encoded = list(encode.encoded(values, tokenizer))
    assert found.tokens.total == sum(len(row.ids) for row in encoded)
    assert found.tokens.learnt == sum(sum(row.mask) for row in encoded)
    assert list(found.tokens.lengths.values) == [len(row.ids) for row in encoded]
    assert found.tokens.cut == sum(len(row.ids) > 8 for row in encoded)
    assert found.tokens.lost == sum(row.first >= 8 for row in encoded)
    assert found.tokens.endless == 0
    assert found.row is not None
    [_, shown] = words.row(found.row, 1, found.tokens)
    assert str(shown).endswith("⟦Lima.<|end|>⟧")


def test_a_template_that_refuses_a_row() -> None:
    refuses = "{{ raise_exception('no') if messages|length > 2 else '' }}"
    writes = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}</s>{% endfor %}"
    Path("t.jinja").write_text(refuses + writes)
    found = look.over(
        write("x.jsonl", jsonl({"messages": [ASK, LIMA]}, {"messages": TALK})),
        How(model="lab", chat_template="t.jinja"),
    )
    assert [str(fault.place) for fault in found.faults] == ["x.jsonl:2"]


def test_held_out_prompts_that_are_trained_on() -> None:
    other = {"role": "user", "content": "Capital of Chile?"}
    trained = look.over(write("a.jsonl", jsonl({"messages": [ASK, LIMA]}, {"messages": TALK})), How()).survey
    held = look.over(write("b.jsonl", jsonl({"messages": [other, LIMA]}, {"messages": [ASK, CUSCO]})), How()).survey
    assert [str(place) for place in survey.leaked(trained, held)] == ["b.jsonl:2"]
    assert words.leaks({"b.jsonl": survey.leaked(trained, held)}) == [
        "1 row of 'b.jsonl' has a prompt that is trained on (first: b.jsonl:2)"
    ]


def test_pairs_and_labels_that_teach_something_else() -> None:
    pairs = [{"prompt": f"p{i}", "chosen": "x" * 20, "rejected": "y"} for i in range(60)]
    assert any("chosen is longer" in text for text in look.over(write("p.jsonl", jsonl(*pairs)), How()).warnings)
    labels = [{"prompt": f"p{i}", "completion": "x", "label": True} for i in range(3)]
    assert look.over(write("k.jsonl", jsonl(*labels)), How()).warnings == [
        "every answer is labelled desirable: KTO needs answers of both labels"
    ]


@pytest.mark.parametrize("name", GOOD)
def test_what_is_converted_means_the_same(name: str) -> None:
    seen = list(survey.read([DataSource(source=write(name, GOOD[name][0]))], root=Path()))
    done = convert.convert(seen, Path("out.jsonl"))
    again = list(survey.read([DataSource(source="out.jsonl")], root=Path()))
    assert done.rows == len(again) == len(seen)
    for one, other in zip(seen, again, strict=True):
        assert not isinstance(one.found, AlignError) and not isinstance(other.found, AlignError)
        assert (one.found.kind, one.found.value) == (other.found.kind, other.found.value)
        assert not other.found.unused


def test_a_conversion_stops_or_skips() -> None:
    write("x.jsonl", jsonl(PC, {"x": 1}, PC) + b"{\n")
    rows = [DataSource(source="x.jsonl")]
    with pytest.raises(AlignError, match=r"x\.jsonl:2: the row has the field 'x'"):
        convert.convert(survey.read(rows, root=Path()), Path("out.jsonl"))
    assert not list(Path().glob("*out*")) and not list(Path().glob(".*part"))
    done = convert.convert(survey.read(rows, root=Path()), Path("out.jsonl"), skip=True, rejects=Path("bad.jsonl"))
    assert (done.rows, done.rejected) == (2, 2)
    bad = [json.loads(line) for line in Path("bad.jsonl").read_text().splitlines()]
    assert [one["place"] for one in bad] == ["x.jsonl:2", "x.jsonl:4:2"]
    assert bad[0]["row"] == {"x": 1} and "row" not in bad[1]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (How(format="alpacca"), "there is no format 'alpacca'\n  -> did you mean 'alpaca'?"),
        (How(max_length=3), "--max-length needs --model\n  -> name the model whose tokenizer counts the tokens"),
        (How(chat_template="plain"), "--chat-template needs --model\n  -> name the model"),
        (How(model="./nothing"), "there is no model folder './nothing'"),
        (How(stage="sftt"), "there is no stage 'sftt'"),
    ],
)
def test_options_that_name_what_is_not_there(how: How, sentence: str) -> None:
    write("x.jsonl", jsonl(PC))
    with pytest.raises(AlignError) as refused:
        look.over("x.jsonl", how)
    assert str(refused.value).startswith(sentence)


def test_memory_does_not_grow_with_the_file() -> None:
    """About 130 bytes a row, good or bad, and no row itself: of 20,000 rows of 2 KB and 9,000 bad ones."""
    import tracemalloc

    rows = jsonl({"prompt": "p" * 1000, "completion": "c" * 1000})
    with Path("x.jsonl").open("wb") as file:
        for number in range(20_000):
            file.write(rows)
            if number < 9_000:
                file.write(jsonl({"x": "y" * 5000}))
    look.over("x.jsonl", How())  # what is imported once
    tracemalloc.start()
    found = look.over("x.jsonl", How())
    assert found.warnings and list(words.summary(found))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.bad == 9_000
    assert peak < 20_000 * 200 + 9_000 * 1_500  # a fault is a sentence, a remedy and a place


# The commands ---------------------------------------------------------------------------------------------------------


def align(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `align data ...`."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "align", "data", *arguments], capture_output=True, text=True, env=environment
    )
    return done.returncode, done.stdout, done.stderr


def test_check_says_what_is_wrong_and_exits_with_2() -> None:
    write("x.jsonl", jsonl(PC, {"x": 1}, PC))
    write("t.jsonl", jsonl(PC))
    code, out, said = align("check", "x.jsonl", "--against", "t.jsonl", "--rejects", "bad.jsonl")
    assert (code, out) == (2, "")
    assert "error x.jsonl:2: the row has the field 'x'" in said
    assert "1 row of 't.jsonl' has a prompt that is trained on (first: t.jsonl:1)" in said
    assert json.loads(Path("bad.jsonl").read_text())["row"] == {"x": 1}
    code, out, _ = align("check", "x.jsonl", "--json")
    [found] = json.loads(out)
    assert (code, found["bad_rows"], [fault["place"] for fault in found["faults"]]) == (2, 1, ["x.jsonl:2"])
    assert align("check", "t.jsonl")[:2] == (0, "t.jsonl: 1 row, ok\n")
    code, _, said = align("check", "t.jsonl", "--against", "no.jsonl")
    assert (code, "there is no file or folder 'no.jsonl'" in said) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "x.jsonl", "--rejects", "x.jsonl"),
        ("check", "here", "--rejects", "here/bad.jsonl"),
        ("convert", "x.jsonl", "x.jsonl"),
        ("convert", "here", "here/all.jsonl"),
        ("convert", "x.jsonl", "o.jsonl", "--on-bad-row", "skip", "--rejects", "o.jsonl"),
        ("convert", "x.jsonl", "o.jsonl", "--on-bad-row", "skip", "--rejects", "x.jsonl"),
    ],
)
def test_what_is_read_is_never_written_over(arguments: tuple[str, ...]) -> None:
    content = jsonl(PC, {"x": 1})
    write("x.jsonl", content)
    Path("here").mkdir()
    write("here/y.jsonl", content)
    code, _, said = align(*arguments)
    assert code == 2
    assert "is among the data that are read" in said or "is named twice" in said
    assert Path("x.jsonl").read_bytes() == content
    assert [path.name for path in Path("here").iterdir()] == ["y.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("show", ""), "the name of the data is empty"),
        (("show", "no.jsonl", "--json"), "there is no file or folder 'no.jsonl'"),
        (("show", "x.jsonl", "--row", "9"), "there is no row 9: 'x.jsonl' has 2"),
        (("show", "dpo_qlora"), "'dpo_qlora' is a recipe"),
        (("show", "dpo_qlora", "sft", "--json"), "'dpo_qlora' is a recipe, which has its own model and data"),
        (("show", "x.jsonl", "sft"), "'x.jsonl' is not a recipe, so it has no stages"),
        (("check", "dpo_qlora"), "'dpo_qlora' is a recipe"),
        (("convert", "x.jsonl", "o.jsonl", "--rejects", "r.jsonl"), "--rejects needs --on-bad-row skip"),
        (("convert", "x.jsonl", "o.csv"), "'o.csv' would be written as JSONL"),
        (("convert", "x.jsonl", "o.jsonl", "--on-bad-row", "ship"), "--on-bad-row does not take 'ship'"),
    ],
)
def test_options_that_cannot_be_meant(arguments: tuple[str, ...], sentence: str) -> None:
    write("x.jsonl", jsonl(PC, PC))
    code, _, said = align(*arguments)
    assert code == 2
    assert sentence in said


def test_what_a_conversion_leaves_out_is_told() -> None:
    write("x.jsonl", jsonl({"prompt": "2 + 2", "solution": "4"}))
    code, out, said = align("convert", "x.jsonl", "o.jsonl")
    assert (code, out) == (0, "o.jsonl: 1 rows\n")
    assert "not written, as no format has a place for it: 'solution' (1 rows)" in said


@pytest.mark.parametrize(
    ("rows", "stage", "wrong"),
    [
        ([{**PC, "label": False}] * 2, "sft", "stage 'sft' trains on answers, but every row is labelled undesirable"),
        ([{"prompt": "a"}, {"prompt": [ASK]}], "grpo", "1 prompts are plain text and 1 are conversations"),
        ([{"prompt": "p", "chosen": "a", "rejected": "a"}], "grpo", ""),
        ([{"prompt": "p", "chosen": "a", "rejected": "a"}], "dpo", "'chosen' and 'rejected' are identical"),
    ],
)
def test_rows_are_judged_as_the_stage_judges_them(rows: list[dict[str, Any]], stage: str, wrong: str) -> None:
    found = look.over(write("x.jsonl", jsonl(*rows)), How(stage=stage))
    assert [fault.what.startswith(wrong) for fault in found.faults] == ([True] if wrong else [])


def test_stages_that_can_train_on_rows() -> None:
    labelled = [{**PC, "label": True}, {"prompt": "x", "completion": "y", "label": False}]
    assert {"kto", "sft"} <= look.over(write("k.jsonl", jsonl(*labelled)), How()).trains.keys()
    tools = jsonl({"messages": [ASK, CALL, {"role": "tool", "content": "Lima"}, LIMA], "tools": TOOLS})
    assert "grpo" not in look.over(write("t.jsonl", tools), How()).trains
    mixed = look.over(write("m.jsonl", jsonl(labelled[0], {"prompt": "p", "chosen": "a", "rejected": "b"})), How())
    assert not any("no stage trains on both" in text for text in mixed.warnings)


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ('say "hi" now', "say hi now", True),
        ("a\nb", "A b!", True),
        ("p (q)", "p q", True),
        ("price 1.5", "price 15", False),
        ("2 + 2", "2 - 2", False),
    ],
)
def test_what_is_near(one: str, other: str, near: bool) -> None:
    found = look.over(write("x.jsonl", jsonl({"text": one}, {"text": other})), How())
    assert found.survey.bare.repeated() == near
