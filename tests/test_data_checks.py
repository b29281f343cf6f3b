"""The checks of a stage's data: faults with their place, warnings with their figures, lengths, chat templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from align.data import template
from align.data.checks import Table, load
from align.data.each_turn import each_turn
from align.data.formats import Example
from align.data.lengths import Lengths, no_answer_left
from align.data.sources import DataSource
from align.data.truncation import fitting, within_context
from align.errors import AlignError, Place
from align.lab import MODEL_DIR

ASK = {"role": "user", "content": "Capital of Peru?"}
LIMA = {"role": "assistant", "content": "Lima."}
PREFERENCE = frozenset({"preference"})
ALL = frozenset({"chat", "prompt_completion", "text", "preference"})
ASKED = frozenset({"prompt", "chat", "prompt_completion", "preference"})  # what a stage that samples answers takes

Data = Callable[[list[dict[str, Any]]], list[DataSource]]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    """Rows as a source: the file rows.jsonl in the current folder."""
    monkeypatch.chdir(tmp_path)

    def data(rows: list[dict[str, Any]]) -> list[DataSource]:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [DataSource(source="rows.jsonl")]

    return data


def table(sources: list[DataSource], accepts: frozenset[Any] = ALL, stage: str = "sft", **keys: Any) -> Table:
    return load(sources, root=Path.cwd(), accepts=accepts, stage=stage, **keys)


def fault(*args: Any, **keys: Any) -> str:
    with pytest.raises(AlignError) as error:
        table(*args, **keys)
    return str(error.value)


def pair(prompt: str, chosen: str = "a good one", rejected: str = "not so good") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_a_table_may_mix_kinds_and_sources(data: Data, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("a passage\n")
    sources = [*data([{"messages": [ASK, LIMA]}, {"text": "plain"}]), DataSource(source="more.txt")]
    found = table(sources)
    assert [(e.kind, str(e.place)) for e in found.examples] == [
        ("chat", "rows.jsonl:1"),
        ("text", "rows.jsonl:2"),
        ("text", "more.txt:1"),
    ]
    assert (found.name, found.warnings) == ("rows.jsonl + more.txt", [])


def test_the_hash_follows_content_and_order_only(data: Data) -> None:
    one = table(data([{"text": "a"}, {"text": "b", "id": 3}])).sha256
    assert one == sha256(b'["text",{"text":"a"}]\n["text",{"text":"b"}]').hexdigest()
    assert table(data([{"content": "a"}, {"text": "b"}])).sha256 == one
    assert table(data([{"text": "b"}, {"text": "a"}])).sha256 != one


def test_all_faults_come_at_once_and_the_rest_is_counted(data: Data) -> None:
    rows = [{"text": "fine"}, {"text": ""}, {"prompt": "x"}, *({"foo": n} for n in range(5))]
    text = fault(data(rows), max_faults=2)
    assert text == (
        "rows.jsonl:2: 'text' is empty\n  -> fill it in, or remove the row\n"
        "rows.jsonl:3: stage 'sft' needs messages or prompt + completion or prompt + chosen + rejected or text, "
        "but the row is a prompt without an answer\n"
        "  -> use other data, or set `format` and `columns`\n"
        "and 5 more errors in the data"
    )


def test_faults_of_several_sources_come_together(data: Data) -> None:
    sources = [DataSource(source="lab/helpdesc"), *data([{"text": ""}])]
    assert fault(sources) == (
        "the lab has no dataset 'lab/helpdesc'\n  -> did you mean lab/helpdesk?\n"
        "rows.jsonl:1: 'text' is empty\n  -> fill it in, or remove the row"
    )
    assert fault([]) == "stage 'sft' has no data\n  -> name it with the key data"


def test_a_kind_that_the_stage_does_not_take(data: Data) -> None:
    assert fault(data([{"messages": [ASK, LIMA]}]), PREFERENCE, "dpo") == (
        "rows.jsonl:1: stage 'dpo' needs prompt + chosen + rejected, but the row is a chat\n"
        "  -> use other data, or set `format` and `columns`"
    )
    assert fault(data([pair("x")]), frozenset({"chat", "text"})) == (
        "rows.jsonl:1: stage 'sft' needs messages or text, but the row is a preference pair\n"
        "  -> use other data, or set `format` and `columns`"
    )


def test_a_stage_that_samples_answers_takes_the_prompts_of_all_rows(data: Data) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "completion": "c"}, pair("d", "e", "e")]
    found = table(data(rows), ASKED, "ppo")
    assert [example.kind for example in found.examples] == ["prompt"] * 3
    assert [example.value for example in found.examples] == [
        {"prompt": prompt} for prompt in ("a", "b", "d")
    ]  # equal answers are no fault where they are not looked at
    again = table(data([{"prompt": [ASK]}, {"messages": [ASK, LIMA]}]), ASKED, "ppo")
    assert again.warnings == []  # what is asked may well be asked often


def test_prompts_keep_the_columns_of_their_rows_where_a_function_may_ask_for_them(data: Data) -> None:
    row = {"prompt": "2 + 3?", "solution": 5, "tags": {"a": [1]}, "nothing": None, "completion_ids": [1]}
    rows = [row, {"question": "4 + 3?", "answer": "7"}, {"prompt": "say a"}]
    found = table(data(rows), ASKED, "grpo", columns=True)
    assert [example.value.get("columns") for example in found.examples] == [
        {"solution": 5, "tags": {"a": [1]}},
        {"question": "4 + 3?", "answer": "7"},
        None,
    ]
    plain = table(data(rows), ASKED, "grpo")
    assert all(example.value.keys() == {"prompt"} for example in plain.examples) and plain.sha256 != found.sha256


def test_texts_and_conversations_are_not_asked_together(data: Data) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"messages": [ASK, LIMA]}, {"prompt": [ASK]}]
    assert fault(data(rows), ASKED, "ppo") == (
        "rows.jsonl:3: the prompt is a conversation, but that of the first row is plain text\n"
        "  -> use one form for all prompts"
    )


def test_a_text_asks_nothing_and_an_answer_alone_neither(data: Data) -> None:
    assert fault(data([{"text": "a passage"}, {"messages": [LIMA]}]), ASKED, "ppo") == (
        "rows.jsonl:1: stage 'ppo' needs messages or prompt + completion or prompt + chosen + rejected or prompts, "
        "but the row is plain text\n"
        "  -> use other data, or set `format` and `columns`\n"
        "rows.jsonl:2: the row has an answer but no prompt\n  -> remove it"
    )


@pytest.mark.parametrize(
    "row",
    [
        pair("x", "the same", " the same\n"),
        {"prompt": [ASK], "chosen": [LIMA], "rejected": [{"role": "assistant", "content": "Lima. "}]},
    ],
)
def test_a_pair_of_equal_answers_is_refused(data: Data, row: dict[str, Any]) -> None:
    assert fault(data([row]), PREFERENCE, "dpo") == (
        "rows.jsonl:1: 'chosen' and 'rejected' are identical, so the pair expresses no preference\n"
        "  -> remove the row, or correct one of the two"
    )


def test_copies_are_counted(data: Data) -> None:
    rows = [{"text": text} for text in ("a", "b", "a", "c", "a")]
    assert table(data(rows)).warnings == ["2 of 5 rows are duplicates"]


def diverse(n: int) -> list[dict[str, str]]:
    """Pairs with nothing to warn of: prompts and answers differ, the longer side alternates."""
    long, short = "a rather long answer, number", "short"
    sides = [(long, short), (short, long)]
    return [pair(f"prompt {i}", f"{sides[i % 2][0]} {i}", f"{sides[i % 2][1]} {i}") for i in range(n)]


def test_diverse_pairs_raise_no_warning(data: Data) -> None:
    assert table(data(diverse(60)), PREFERENCE, "dpo").warnings == []


def test_few_and_repeated_prompts(data: Data) -> None:
    few = [{**row, "prompt": f"prompt {i % 7}"} for i, row in enumerate(diverse(60))]
    assert table(data(few), PREFERENCE, "dpo").warnings == [
        "the 60 pairs have only 7 different prompts: the model may memorise these prompts"
    ]
    one = [{**row, "prompt": "the prompt"} for row in diverse(3)]
    assert table(data(one), PREFERENCE, "dpo").warnings == [
        "the 3 pairs have the same prompt: the model may memorise it"
    ]
    assert table(data(one[:1]), PREFERENCE, "dpo").warnings == ["there is only one pair: the model may memorise it"]
    repeated = [{**row, "prompt": f"prompt {i % 60}"} for i, row in enumerate(diverse(200))]
    assert table(data(repeated), PREFERENCE, "dpo").warnings == ["140 of 200 pairs (70 %) repeat a prompt"]


def test_few_chosen_answers(data: Data) -> None:
    rows = [{**row, "chosen": f"reply number {i % 3}"} for i, row in enumerate(diverse(60))]
    assert table(data(rows), PREFERENCE, "dpo").warnings == [
        "the 60 pairs have only 3 different chosen answers: the model may memorise these"
    ]


@pytest.mark.parametrize(("longer", "warned"), [(51, False), (52, True)])
def test_length_bias_from_85_percent_on(data: Data, longer: int, warned: bool) -> None:
    rows = [pair(f"p{i}", f"{i:020}", f"{i:010}") if i < longer else pair(f"p{i}", f"{i:010}", f"{i:020}")
            for i in range(60)]  # fmt: skip
    chosen = (20 * longer + 10 * (60 - longer)) / 60
    expected = (
        f"chosen is longer than rejected in 52 of 60 pairs (87 %; {chosen:.0f} vs. {30 - chosen:.0f} characters "
        "on average): the model may learn to be long rather than good"
    )
    assert table(data(rows), PREFERENCE, "dpo").warnings == ([expected] if warned else [])
    mirrored = [pair(row["prompt"], row["rejected"], row["chosen"]) for row in rows]
    found = table(data(mirrored), PREFERENCE, "dpo").warnings
    assert [text.split(" in ")[0] for text in found] == (["chosen is shorter than rejected"] if warned else [])


# Lengths ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bytewise(tmp_path: Path) -> Path:
    """A model folder whose tokenizer makes one token of every byte, so that lengths can be counted by hand."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.enable_truncation(4)  # which a saved tokenizer may carry, and which must not cut our counts
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "$"}, "pad_token": "#"}))
    return folder


TURNS = (
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


def lengths(folder: Path, chat_template: str | None = TURNS) -> Lengths:
    found = Lengths.of(folder, chat_template)
    assert found is not None
    return found


def example(kind: Any, **value: Any) -> Example:
    return Example(kind, value, Place("x.jsonl", 9))


def said(role: str, size: int) -> dict[str, str]:
    return {"role": role, "content": "x" * size}


@pytest.mark.parametrize(
    ("row", "prompt", "total"),
    [
        (example("text", text="x" * 10), 0, 11),
        (example("prompt_completion", prompt="x" * 10, completion="é" * 10), 10, 31),
        (example("preference", prompt="x" * 10, chosen="y" * 5, rejected="z" * 7), 10, 18),
        (example("chat", messages=[said("user", 10), said("assistant", 5)]), 16, 22),
        (example("chat", messages=[said("user", 10), said("assistant", 5), said("user", 1), said("assistant", 1)]),
         16, 30),
        (example("chat", messages=[{"role": "user", "content": "é" * 300}, said("assistant", 5)]), 606, 612),
        (example("preference", prompt=[said("user", 10)], chosen=[said("assistant", 5)],
                 rejected=[said("assistant", 50)]), 16, 67),
        (example("preference", prompt="x" * 10, chosen="y" * 5, rejected="z" * 7, margin=1.5), 10, 18),
        (example("prompt", prompt="x" * 10), 10, 10),
        (example("prompt", prompt=[said("user", 10)]), 16, 16),
    ],
)  # fmt: skip
def test_counts_by_hand(bytewise: Path, row: Example, prompt: int, total: int) -> None:
    counter = lengths(bytewise)
    count = next(counter.counts([row]))
    assert (count.prompt, count.total) == (prompt, total)
    for limit in range(1, total + 60):
        assert not (counter.surely_fits(row, limit) and total > limit)
        if row.kind == "prompt":  # has no answer to be cut away
            continue
        assert no_answer_left(row, count, limit, "keep_start") is (row.kind != "text" and prompt >= limit)
        assert no_answer_left(row, count, limit, "whole") is (total > limit)
        assert not no_answer_left(row, count, limit, "keep_end")


def test_counts_are_those_of_the_training_rows() -> None:
    from transformers import PreTrainedTokenizerFast

    from align.data.encode import encoded
    from align.data.tokenizer import TextTokenizer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)
    counter = lengths(MODEL_DIR, None)
    rows = [
        example("text", text="Ana has a lamp that leaks."),
        example("prompt_completion", prompt="Which item? ", completion="The lamp."),
        example("chat", messages=[ASK, LIMA, ASK, LIMA]),
        example("chat", messages=[{"role": "system", "content": "Be brief."}, ASK, LIMA]),
        example("prompt_completion", prompt=[ASK], completion=[LIMA]),
    ]
    trained = encoded([row.value for row in rows], TextTokenizer.of(tokenizer))
    for count, row in zip(counter.counts(rows), trained, strict=True):
        assert (count.prompt, count.last, count.total) == (row.first, row.last, len(row.ids))


def test_answers_that_would_be_cut_away_are_refused_and_cut_ones_counted(bytewise: Path) -> None:
    answers = [example("chat", messages=[said("user", 10), said("assistant", size)]) for size in (1, 100, 200)]
    found = Table(answers, "", "x")
    assert fitting(found.examples, lengths(bytewise), 64, "keep_start")[1] == [
        "2 of 3 answers are cut short by max_length 64"
    ]
    assert fitting(found.examples, lengths(bytewise), 64, "keep_end")[1] == [
        "2 of 3 rows lose their beginning to max_length 64"
    ]
    assert fitting(found.examples, lengths(bytewise), 512, "keep_start") == (found.examples, [])
    assert fitting(found.examples, lengths(bytewise), None, "keep_start") == (found.examples, [])
    long = [*answers, example("chat", messages=[said("user", 2000), said("assistant", 1)])]
    with pytest.raises(AlignError) as error:
        fitting(long, lengths(bytewise), 64, "keep_start")
    assert str(error.value) == (
        "x.jsonl:9: max_length 64 leaves nothing of the answer: the prompt has 2,006 tokens\n"
        "  -> raise max_length above 2,006, shorten the row, or write `too_long: drop` in the stage"
    )
    kept, warnings = fitting(long, lengths(bytewise), 64, "keep_start", drop=True)
    assert kept == answers
    assert warnings[0] == f"1 of {len(long)} rows are dropped: no answer is left by max_length 64"


def test_rows_that_must_be_whole_are_refused_or_dropped(bytewise: Path) -> None:
    """What a reward model scores stands at the end of an answer."""
    rows = [example("preference", prompt="x" * 10, chosen="y" * n, rejected="z" * (n + 1)) for n in (5, 12, 20)]
    assert fitting(rows, lengths(bytewise), 32, "whole") == (rows, [])  # the longest: 10 + 21 + the end
    with pytest.raises(AlignError) as error:
        fitting(rows, lengths(bytewise), 23, "whole")
    assert str(error.value) == (
        "x.jsonl:9: the row has 24 tokens and must not be truncated, but max_length is 23\n"
        "  -> raise max_length above 23, shorten the row, or write `too_long: drop` in the stage\n"
        "x.jsonl:9: the row has 32 tokens and must not be truncated, but max_length is 23\n"
        "  -> raise max_length above 31, shorten the row, or write `too_long: drop` in the stage"
    )
    assert fitting(rows, lengths(bytewise), 23, "whole", drop=True) == (
        rows[:1],
        ["2 of 3 rows are dropped: they have more tokens than max_length 23"],
    )


def asking(size: int, line: int) -> Example:
    return Example("prompt", {"prompt": "x" * size}, Place("x.jsonl", line))


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused(bytewise: Path) -> None:
    rows = [asking(10, 1), asking(60, 2), asking(90, 3), asking(61, 4), asking(62, 5)]
    within_context(rows, lengths(bytewise), None, context=100, answer=10)
    with pytest.raises(AlignError) as error:
        within_context(rows, lengths(bytewise), None, context=100, answer=40)
    assert str(error.value) == (
        "x.jsonl:3: a prompt of 90 tokens and an answer of 40 (max_completion_length) exceed the "
        "model's context of 100; 2 more rows are affected\n"
        "  -> lower `training.max_completion_length`, or shorten the rows"
    )
    with pytest.raises(AlignError) as error:
        within_context(rows[:1], lengths(bytewise), None, context=100, answer=91)
    assert str(error.value) == (
        "x.jsonl:1: a prompt of 10 tokens and an answer of 91 (max_completion_length) exceed the model's "
        "context of 100\n"
        "  -> lower `training.max_completion_length`, or shorten the rows"
    )
    with pytest.raises(AlignError, match=r"a prompt of 90 tokens and an answer of 500 .* 4 more rows are affected"):
        within_context(rows, lengths(bytewise), None, context=100, answer=500)


def test_the_template_of_a_question_counts_before_its_answer(bytewise: Path) -> None:
    """`[u]` before the question and `[a]` after it."""
    asked = [example("prompt", prompt=[said("user", 10)])]
    within_context(asked, lengths(bytewise), None, context=20, answer=4)
    with pytest.raises(AlignError, match="a prompt of 16 tokens and an answer of 5 "):
        within_context(asked, lengths(bytewise), None, context=20, answer=5)


def test_a_model_without_a_fast_tokenizer_skips_the_check(tmp_path: Path) -> None:
    assert Lengths.of(tmp_path) is None
    assert fitting([], None, 64, "keep_start")[1] == [
        "the model has no tokenizer.json, so row lengths were not checked"
    ]


def test_conversations_that_the_template_cannot_write_are_refused_whatever_their_length(bytewise: Path) -> None:
    strict = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS
    )
    strict += "{% endfor %}"
    rows = [example("chat", messages=[ASK, LIMA]), example("chat", messages=[said("system", 1), ASK, LIMA])]
    with pytest.raises(AlignError) as error:
        fitting(rows, lengths(bytewise, strict), 4096, "keep_start")
    assert str(error.value) == (
        "x.jsonl:9: the chat template rejects the messages: no system role\n"
        "  -> change the row, or choose another chat_template"
    )
    with pytest.raises(AlignError) as error:
        fitting(rows[:1], lengths(bytewise, None), 4096, "keep_start")
    assert str(error.value) == (
        "x.jsonl:9: the row is a conversation, but the model has no chat template\n"
        "  -> set `chat_template: plain`, or give a .jinja file"
    )


# Chat templates --------------------------------------------------------------------------------------------------

TALK = [{"role": "system", "content": "Be brief."}, ASK, LIMA, {"role": "user", "content": "<b>Why?</b>\n"}]
WHITESPACE = """{%- set ns = namespace(n=0) -%}
{% for m in messages %}
    {% if m.role == 'system' %}
        {% continue %}
    {% endif %}
    {% set ns.n = ns.n + 1 %}
    {% if m.role == 'assistant' %}
    {% generation %}
      {% set shown = m.content | upper %}
{{ ns.n }} {{ shown }}{{ eos_token }}
    {% endgeneration %}
    {% endif %}
{{ shown }} {{ m | tojson }} {{ {'b': "é<'", 'a': [1]} | tojson(indent=2, sort_keys=true) }}
{% endfor %}
{{ bos_token }}|{{ tools is none }}|{{ tools is defined }}{% if add_generation_prompt %}go{% endif %}
"""


@pytest.mark.parametrize("source", [template.PLAIN, WHITESPACE, TURNS, (MODEL_DIR / "chat_template.jinja").read_text()])
@pytest.mark.parametrize("tokens", [{}, {"bos_token": "<s>", "eos_token": "</s>"}])
@pytest.mark.parametrize("ask", [True, False])
def test_rendering_equals_that_of_transformers(source: str, tokens: dict[str, str], ask: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template([TALK], chat_template=source, add_generation_prompt=ask, **tokens)
    both = {"bos_token": None, "eos_token": None, **tokens}
    assert template.render(source, TALK, add_generation_prompt=ask, **both) == rendered[0]


def test_the_plain_template() -> None:
    system, talk = TALK[0], [ASK, LIMA, {"role": "user", "content": "Why?"}]
    whole = template.render(
        template.PLAIN, [system, *talk, LIMA], add_generation_prompt=False, bos_token="<s>", eos_token="</s>"
    )
    assert whole == ("<s>Be brief.\n\nUser: Capital of Peru?\nAssistant: Lima.</s>\nUser: Why?\nAssistant: Lima.</s>")
    prompt = template.render(template.PLAIN, talk, add_generation_prompt=True, bos_token=None, eos_token="</s>")
    assert prompt == "User: Capital of Peru?\nAssistant: Lima.</s>\nUser: Why?\nAssistant:"
    assert template.render(
        template.PLAIN, [*talk, LIMA], add_generation_prompt=False, bos_token=None, eos_token="</s>"
    ).startswith(prompt)


@pytest.mark.parametrize("attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_a_template_cannot_leave_its_sandbox(attack: str) -> None:
    with pytest.raises(AlignError, match="the chat template rejects the messages: "):
        template.render(attack, TALK, add_generation_prompt=False, bos_token=None, eos_token=None)


def test_where_a_model_keeps_its_template(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    assert template.find(tmp_path) is None
    config.write_text('{"chat_template": "one"}')
    assert template.find(tmp_path) == "one"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert template.find(tmp_path) == "three"
    (tmp_path / "chat_template.jinja").write_text("four")
    assert template.find(tmp_path) == "four"


def test_what_a_recipe_may_name_as_its_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/chat.jinja").write_text("{{ messages }}")
    (tmp_path / "recipes/bad.jinja").write_text("fine\n{% for m in %}")
    assert template.resolve("plain", tmp_path) == template.PLAIN
    assert template.resolve("chat.jinja", tmp_path / "recipes") == "{{ messages }}"
    with pytest.raises(AlignError) as error:
        template.resolve("recipes/chta.jinja", tmp_path)
    assert str(error.value) == (
        "there is no chat template 'recipes/chta.jinja'\n  -> did you mean 'recipes/chat.jinja'?"
    )
    with pytest.raises(AlignError) as error:
        template.resolve("bad.jinja", tmp_path / "recipes")
    assert str(error.value) == (
        "bad.jinja:2: the chat template is not valid: Expected an expression, got 'end of statement block'\n"
        "  -> correct the template there"
    )


def test_thoughts_are_missed_where_they_are_to_be_learnt(bytewise: Path) -> None:
    reads_one = (
        "{% for m in messages %}{{ m.role }}:{% if loop.last %}{{ m.reasoning_content }}{% endif %}{{ m.content }}"
        "<|end|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    thought = LIMA | {"reasoning_content": "It begins with L."}
    rows = [example("chat", messages=[ASK, thought, ASK, thought])]
    left_out = "the chat template drops the reasoning of 1 of 1 rows (first: x.jsonl:9)"
    known = lengths(bytewise, reads_one)
    assert fitting(rows, known, None)[1] == [f"{left_out}; `turns: each` includes that of every turn"]
    assert fitting(each_turn(rows), known, None, turns="last")[1] == []  # those of earlier turns are not learnt
    named = LIMA | {"reasoning": "It begins with L."}  # which the template does not read
    rows = [example("chat", messages=[ASK, named])]
    assert fitting(rows, known, None)[1] == fitting(rows, known, None, turns="last")[1] == [left_out]
