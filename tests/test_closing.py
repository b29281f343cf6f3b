"""A reward model reads an answer where it was trained, whatever a template puts after the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerBase

import models
from align.data.tokenizer import TextTokenizer
from align.rl import scoring
from align.rl.scoring import Question

ENDS_THERE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
GOES_ON = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ENDS_TWICE = GOES_ON + "{% if not add_generation_prompt %}</s>{% endif %}"
WITHOUT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ASKS = {WITHOUT: "{% if add_generation_prompt %}assistant: {% endif %}"}
HEAD = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

ASKED = [[{"role": "user", "content": text}] for text in ("What is 7 plus 2?", "Is it?", "Repeat: a b c d e f g")]
SAID = ["It is 9.", "Yes, it is what it is.", "No."]


def tokenizer_with(template: str, pad: str) -> PreTrainedTokenizerBase:
    tokenizer = models.merging_tokenizer(template + ASKS.get(template, HEAD))
    tokenizer.eos_token, tokenizer.pad_token = "</s>", pad
    return tokenizer


def reward_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForSequenceClassification:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForSequenceClassification(config).eval()


def plain(model: Any, tokenizer: PreTrainedTokenizerBase, side: str) -> list[float]:
    """By transformers alone, of the conversations as the template writes them, padded on one side."""
    talks = [[*asked, {"role": "assistant", "content": said}] for asked, said in zip(ASKED, SAID, strict=True)]
    texts = [str(tokenizer.apply_chat_template(talk, tokenize=False)) for talk in talks]
    if "</s>" not in texts[0] and "<|im_end|>" not in texts[0]:
        texts = [text.rstrip() + "</s>" for text in texts]  # the end that align teaches under such a template
    ids = tokenizer(texts, add_special_tokens=False, padding=True, padding_side=side, return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits[:, 0].tolist()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pad", ["</s>", "<pad>", "<|im_end|>"])
@pytest.mark.parametrize("template", [ENDS_THERE, GOES_ON, ENDS_TWICE, WITHOUT], ids=["end", "after", "twice", "none"])
def test_the_score_of_a_sampled_answer_is_that_of_the_rendered_conversation(template: str, pad: str, side: str) -> None:
    tokenizer = tokenizer_with(template, pad)
    reader, model = TextTokenizer.of(tokenizer), reward_model(tokenizer)
    ends = [*reader.ends, tokenizer.eos_token_id]
    prompts = [tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) for asked in ASKED]
    # as they are sampled: the words, and the first end that stops them
    words = [tokenizer(said, add_special_tokens=False)["input_ids"] + [ends[0]] for said in SAID]
    question = Question(
        prompts=ASKED,
        completions=[[{"role": "assistant", "content": said}] for said in SAID],
        prompt_ids=[tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts],
        completion_ids=words,
    )
    scorer = scoring.OwnModel("r", model, tokenizer, same=True, size=2, closed=scoring.closed(tokenizer, ends))
    together = [
        tokenizer.decode(row) for row in scorer.closed.rows(question)
    ]  # words may merge with what stands before them, so that the tokens, not the texts, may differ
    expected = plain(model, tokenizer, side)
    talks = [[*asked, {"role": "assistant", "content": said}] for asked, said in zip(ASKED, SAID, strict=True)]
    rendered = [str(tokenizer.apply_chat_template(talk, tokenize=False)) for talk in talks]
    assert together == [text.rstrip() + "</s>" if template == WITHOUT else text for text in rendered]
    again = scoring.OwnModel("r", model, tokenizer, same=False, size=2, closed=scoring.closed(tokenizer, ends))
    assert again(question) == pytest.approx(expected, abs=1e-5)
    if template != WITHOUT:
        assert scorer(question) == pytest.approx(expected, abs=1e-5)


def test_an_answer_that_was_cut_off_gets_no_end() -> None:
    tokenizer = tokenizer_with(GOES_ON, "<pad>")
    question = Question([ASKED[0]], [[{"role": "assistant", "content": "It is"}]], [[5, 6]], [[7, 8]])
    ends = TextTokenizer.of(tokenizer).ends
    closed = scoring.closed(tokenizer, ends)
    assert closed.rows(question) == [[5, 6, 7, 8]]
    reread = scoring.OwnModel("r", reward_model(tokenizer), tokenizer, same=False, size=1, closed=closed)
    (row,) = reread._reread(question)
    assert tokenizer.decode(row).endswith("assistant\nIt is")


@pytest.mark.parametrize("template", [ENDS_THERE, GOES_ON, ENDS_TWICE, WITHOUT], ids=["end", "after", "twice", "none"])
def test_an_answer_of_no_words_is_read_as_well(template: str) -> None:
    tokenizer = tokenizer_with(template, "<pad>")
    closed = scoring.closed(tokenizer, [tokenizer.eos_token_id])
    question = Question([ASKED[0]], [[{"role": "assistant", "content": ""}]], [[5, 6]], [[tokenizer.eos_token_id]])
    reread = scoring.OwnModel("r", reward_model(tokenizer), tokenizer, same=False, size=1, closed=closed)
    (row,) = reread._reread(question)
    assert row[-len(closed.tokenizer.closing(conversation=True)) :] == closed.rows(question)[0][2:]
