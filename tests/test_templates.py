"""What is learnt under every chat template that TRL ships, for conversations of every shape: held against words that
only one role says, against TRL's own marked templates, and against five templates worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from align.data import encode
from align.data.encode import Row
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError
from chat_shapes import EOS, FOLDER, NAMES, SHAPES, TOOLS, decoded, has_tools, page, said, text_of, tokenizer_for, user

_SCAFFOLD = re.compile(r"<think>\s*</think>\s*")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, TextTokenizer]:
    return {name: tokenizer_for(text_of(name)) for name in NAMES}


def row_of(tokenizer: TextTokenizer, shape: str) -> Row | None:
    """The row of a shape; None where the template refuses it."""
    value: dict[str, Any] = {"messages": SHAPES[shape]} | ({"tools": TOOLS} if has_tools(shape) else {})
    try:
        return next(encode.encoded([value], tokenizer))
    except AlignError:
        return None


def learnt(tokenizer: TextTokenizer, row: Row) -> list[str]:
    return [decoded(tokenizer, row.ids[start:end]) for start, end in row.learnt]


def words(text: str) -> set[str]:
    return set(re.findall(r"(?:asked|answer|thought|result|port|hidden)\d|sysword", text))


@pytest.mark.parametrize("name", NAMES)
def test_the_words_of_the_assistant_are_learnt_and_no_others(tokenizers: dict[str, TextTokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    for shape, messages in SHAPES.items():
        row = row_of(tokenizer, shape)
        if row is None:
            continue
        on = "".join(learnt(tokenizer, row))
        off = decoded(tokenizer, [token for token, one in zip(row.ids, row.mask, strict=True) if not one])
        assistants = {word for word in words(on + off) if word.startswith(("answer", "thought", "port"))}
        assert words(on) == assistants, shape
        assert not words(off) & assistants, shape
        assert {word for word in words(repr(messages)) if word.startswith("answer")} <= words(on), shape


@pytest.mark.parametrize("name", NAMES)
def test_every_turn_ends_with_an_end(tokenizers: dict[str, TextTokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    for shape in ("one turn", "two turns", "five turns", "system", "spaces", "assistant first", "tools, then on"):
        row = row_of(tokenizer, shape)
        if row is None:
            continue
        assert tokenizer.template is not None and tokenizer.template.ends
        for text in learnt(tokenizer, row):
            amid = ("<|end|>",) if name == "gptoss" else ()  # its last turn ends otherwise than those before
            assert text.rstrip().endswith((*tokenizer.template.ends, *amid)), (shape, text)


def marked_by_trl(name: str, tokenizer: TextTokenizer, shape: str) -> list[str] | None:
    """What TRL's own variant of a template marks as the assistant's, run by transformers; None where it refuses."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{key: value for key, value in one.items() if key != "train"} for one in SHAPES[shape]]
    try:
        texts, places = render_jinja_template(
            conversations=[messages],
            tools=TOOLS if has_tools(shape) else None,
            chat_template=text_of(f"{name}_training"),
            return_assistant_tokens_mask=True,
            **tokenizer.tokens,
        )
    except (TemplateError, TypeError):
        return None
    return [texts[0][start:end] for start, end in places[0]]


def bare(text: str) -> str:
    """Without what TRL's marks take in and ours do not, and an empty block of thoughts, which they write always: the
    role's header, line breaks after the end, the end of the conversation after that of the turn."""
    text = _SCAFFOLD.sub("", text).strip()
    text = "" if text == EOS else text.removesuffix("<|tool_response>")  # at which a call of Gemma's ends
    return re.sub(r"^(<\|start\|>assistant|<｜Assistant｜>|<｜tool▁outputs▁end｜>)", "", text).strip()


@pytest.mark.parametrize("name", [name for name in NAMES if (FOLDER / f"{name}_training.jinja").is_file()])
def test_what_trl_marks_is_learnt(tokenizers: dict[str, TextTokenizer], name: str) -> None:
    compared = 0
    for shape in SHAPES:
        if shape == "one not trained on" or "reasoning" in shape:
            continue  # TRL's variants write these where the originals do not
        if (name, shape) == ("glm4moe", "in a row"):  # TRL's variant puts the head of a user's turn between the two
            continue
        row, marked = row_of(tokenizers[name], shape), marked_by_trl(name, tokenizers[name], shape)
        if row is None or not marked:
            continue
        # one turn may have several marks, and neighbouring turns one
        assert "".join(map(bare, learnt(tokenizers[name], row))) == "".join(map(bare, marked)), shape
        compared += 1
    assert compared or name in VISION


VISION = ("idefics3", "llava_next", "smolvlm")
"""Templates that want parts of text and images, and leave a plain text out."""


def test_only_templates_for_images_refuse_a_plain_turn(tokenizers: dict[str, TextTokenizer]) -> None:
    assert [name for name in NAMES if row_of(tokenizers[name], "one turn") is None] == list(VISION)


BY_HAND: dict[str, dict[str, list[str] | None]] = {
    "qwen2_5": {
        "spaces": ["\n  answer1  \n<|im_end|>", " answer2\n\n<|im_end|>"],
        "tools": [
            '<tool_call>\n{"name": "tide", "arguments": {"port": "port1"}}\n</tool_call><|im_end|>',
            "answer1<|im_end|>",
        ],
        "assistant first": ["answer1<|im_end|>", "answer2<|im_end|>"],
        "one not trained on": ["answer2<|im_end|>"],
    },
    "qwen3": {
        "two turns": ["answer1<|im_end|>", "<think>\n\n</think>\n\nanswer2<|im_end|>"],
        "reasoning": ["answer1<|im_end|>", "<think>\nthought2\n</think>\n\nanswer2<|im_end|>"],
        "reasoning in the text": ["<think>\nthought1\n</think>\n\nanswer1<|im_end|>"],
        "reasoning and tools": [
            '<tool_call>\n{"name": "tide", "arguments": {"port": "port1"}}\n</tool_call><|im_end|>',
            "answer1<|im_end|>",
            "<think>\nthought3\n</think>\n\nanswer2<|im_end|>",
        ],
    },
    "gptoss": {
        "two turns": ["<|channel|>final<|message|>answer1<|end|>", "<|channel|>final<|message|>answer2<|return|>"],
        "tools": [
            ' to=functions.tide<|channel|>commentary json<|message|>{"port": "port1"}<|call|>',
            "<|channel|>final<|message|>answer1<|return|>",
        ],
    },
    "glm4moe": {
        "two turns": ["\n<think></think>\nanswer1<|user|>", "\n<think></think>\nanswer2<|user|>"],
        "tools": [
            "\n<think></think>\n<tool_call>tide\n<arg_key>port</arg_key>\n<arg_value>port1</arg_value>\n</tool_call>"
            "<|observation|>",
            "\n<think></think>\nanswer1<|user|>",
        ],
    },
    "phi3": {
        "two turns": ["answer1<|end|>", "answer2<|end|>"],
        "in a row": ["answer1<|end|>", "answer2<|end|>", "answer3<|end|>"],
        "one not trained on": ["answer2<|end|>"],
    },
    "gemma4": {
        "two turns": ["answer1<turn|>", "answer2<turn|>"],
        "tools, then on": [
            '<|tool_call>call:tide{port:<|"|>port1<|"|>}<tool_call|><|tool_response>',
            "answer1<turn|>",
            "answer2<turn|>",
        ],
    },
    "deepseek_r1_distill": {
        "reasoning in the text": ["\n\nanswer1<｜end▁of▁sentence｜>"],
        "two turns": ["answer1<｜end▁of▁sentence｜>", "answer2<｜end▁of▁sentence｜>"],
    },
    "llama3": {
        "spaces": ["answer1<|eot_id|>", "answer2<|eot_id|>"],
        "assistant first": ["answer1<|eot_id|>", "answer2<|eot_id|>"],
    },
    "gemma": {"two turns": ["answer1<end_of_turn>", "answer2<end_of_turn>"], "assistant first": None, "in a row": None},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(tokenizers: dict[str, TextTokenizer], name: str) -> None:
    for shape, expected in BY_HAND[name].items():
        row = row_of(tokenizers[name], shape)
        assert (row and learnt(tokenizers[name], row)) == expected, shape


@pytest.mark.parametrize("name", [name for name in NAMES if name not in VISION])
def test_pairs_learn_of_each_side_what_a_conversation_learns_of_its_answer(
    tokenizers: dict[str, TextTokenizer], name: str
) -> None:
    """The prompt may hold answers, and an answer may hold turns of the user."""
    tokenizer = tokenizers[name]
    pair = {
        "prompt": [user("asked1"), said("answer2"), user("asked2")],
        "chosen": [said("answer1"), user("asked3"), said("answer3")],
        "rejected": [said("answer4")],
    }
    (made,) = encode.pairs([pair], tokenizer)
    for row, expected in ((made.chosen, {"answer1", "answer3"}), (made.rejected, {"answer4"})):
        assert words("".join(learnt(tokenizer, row))) == expected
        assert row.ids[: made.prompt] == made.chosen.ids[: made.prompt]
    assert words(decoded(tokenizer, made.chosen.ids[: made.prompt])) == {"asked1", "answer2", "asked2"}
    (alone,) = encode.encoded([{"messages": [*pair["prompt"], *pair["chosen"]]}], tokenizer)
    assert made.chosen.ids == alone.ids
    assert made.chosen.learnt == alone.learnt[1:]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in VISION])
def test_prompts_are_what_transformers_asks(tokenizers: dict[str, TextTokenizer], name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    tokenizer = tokenizers[name]
    asked = SHAPES["two turns"][:3]
    texts, _ = render_jinja_template(
        conversations=[asked], chat_template=text_of(name), add_generation_prompt=True, **tokenizer.tokens
    )
    assert encode.prompt_ids([asked], tokenizer) == tokenizer.ids(texts, special=False)


def test_the_page_of_chat_templates_is_this_one() -> None:
    file = Path(__file__).parents[1] / "docs" / "chat_templates.md"
    assert file.read_text(encoding="utf-8") == page(), "python tests/chat_shapes.py > docs/chat_templates.md"
