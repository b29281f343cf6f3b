"""Rows as token ids: what TRL's own preparation gives, and in conversations every answer and nothing else."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import models
from align.data import encode, tokens
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError

STRINGS = [
    {"prompt": "What is 7 plus 2?", "completion": " It is 9."},
    {"prompt": "What is 7 plus 2? It", "completion": " is 9."},
    {"prompt": "user: Wh", "completion": "at is it?"},  # a token goes over the boundary
    {"prompt": "The answer is ", "completion": "4."},
]
TOLD = [
    {
        "prompt": [{"role": "user", "content": "What is 7 plus 2?"}],
        "completion": [{"role": "assistant", "content": "It is 9."}],
    },
    {
        "prompt": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": "A blue one."},
            {"role": "user", "content": "And 2?"},
        ],
        "completion": [{"role": "assistant", "content": " 4."}],
    },
]
TEXTS = [{"text": "The answer is 4."}, {"text": "What is 7 plus 2? It is 9."}]
TALKS = [
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "What is 7 plus 2?"},
            {"role": "assistant", "content": "It is 9."},
            {"role": "user", "content": "Is it?"},
            {"role": "assistant", "content": "The answer is 9."},
            {"role": "user", "content": "Thank you."},
            {"role": "assistant", "content": "What else?"},
        ]
    },
    {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is 4."}]},
]
PAIRS = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": " No."} for r in STRINGS]
TOLD_PAIRS = [
    {"prompt": r["prompt"], "chosen": r["completion"], "rejected": [{"role": "assistant", "content": "It can't be."}]}
    for r in TOLD
]


@pytest.fixture(scope="module", params=["lab", "merging"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return models.lab_tokenizer() if request.param == "lab" else models.merging_tokenizer(models.WORDY)


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerBase:
    return models.merging_tokenizer(models.WORDY)


def sft_arguments(folder: Path, **given: Any) -> SFTConfig:
    return SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **given)


def learnt(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, completion_only: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and labels of rows, not cut."""
    found = list(encode.encoded(rows, TextTokenizer.of(tokenizer)))
    return [row.ids for row in found], [row.labels if completion_only else row.ids for row in found]


def trl_rows(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, args: SFTConfig, *, completion_only: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """The rows as TRL's SFTTrainer prepares them."""
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=completion_only)
    made = SFTTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, False, None, "train")
    return made["input_ids"][:], made["labels"][:]


def without_tail(labels: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """TRL's labels without what the template writes after the end of the answer: it is not the assistant's."""
    found = []
    for row in labels:
        end = len(row) - row[::-1].index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
        assert not tokenizer.decode(row[end:]).strip()
        found.append(row[:end] + [encode.IGNORE] * (len(row) - end))
    return found


def trl_pairs(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, args: DPOConfig
) -> dict[str, list[list[int]]]:
    """The rows as TRL's DPOTrainer prepares them."""
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    made = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, "train")
    return {name: made[name][:] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}


@pytest.mark.parametrize("completion_only", [True, False])
@pytest.mark.parametrize("rows", [STRINGS, TOLD, TEXTS], ids=["strings", "conversations", "texts"])
def test_the_same_as_trl(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], completion_only: bool, tmp_path: Path
) -> None:
    args = sft_arguments(tmp_path, max_length=None)
    ids, labels = trl_rows(rows, tokenizer, args, completion_only=completion_only)
    labels = without_tail(labels, tokenizer) if completion_only else labels
    assert learnt(rows, tokenizer, completion_only=completion_only) == (ids, labels)
    if not completion_only or "text" in rows[0]:
        assert labels == ids, "everything counts"


def test_whole_conversations_are_the_same_as_trl(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    args = sft_arguments(tmp_path, max_length=None)
    expected = trl_rows(TALKS, tokenizer, args, completion_only=False)
    assert learnt(TALKS, tokenizer, completion_only=False) == expected


def test_a_token_that_goes_over_the_boundary_counts(merging: PreTrainedTokenizerBase) -> None:
    ids, labels = learnt([STRINGS[2]], merging, completion_only=True)
    alone = merging(STRINGS[2]["prompt"])["input_ids"]
    assert ids[0][: len(alone)] != alone, "the tokens of prompt and answer merge in this example"
    counted = merging.decode([token for token in labels[0] if token != encode.IGNORE])
    assert counted.endswith("at is it?</s>") and "user: Wh".endswith(counted.removesuffix("at is it?</s>"))


def test_plain_text_begins_and_ends_as_the_model_knows_it(tokenizer: PreTrainedTokenizerBase) -> None:
    ids, labels = learnt([*TEXTS, {"text": f"Done.{tokenizer.eos_token}"}], tokenizer, completion_only=True)
    for row, label in zip(ids, labels, strict=True):
        assert row[0] == tokenizer.bos_token_id and row[-1] == tokenizer.eos_token_id
        assert row.count(tokenizer.eos_token_id) == 1
        assert label == row


def test_kinds_of_rows_stand_in_one_table(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [TALKS[0], STRINGS[0], TEXTS[0], TOLD[1], TALKS[1]]
    ids, labels = learnt(rows, tokenizer, completion_only=True)
    for i, row in enumerate(rows):
        alone = learnt([row], tokenizer, completion_only=True)
        assert ([ids[i]], [labels[i]]) == alone


def spans(labels: list[int]) -> list[list[int]]:
    """The runs of tokens that count."""
    return [list(run) for counts, run in groupby(labels, key=lambda token: token != encode.IGNORE) if counts]


def test_every_answer_of_a_conversation_counts_and_nothing_else() -> None:
    """Against the marks that the lab's template itself puts around what the assistant says."""
    tokenizer = models.lab_tokenizer()
    ids, labels = learnt(TALKS, tokenizer, completion_only=True)
    for row, own_ids, own_labels in zip(TALKS, ids, labels, strict=True):
        marked = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        assert own_ids == marked["input_ids"]
        assert [int(token != encode.IGNORE) for token in own_labels] == marked["assistant_masks"]
        answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        assert [tokenizer.decode(span).strip() for span in spans(own_labels)] == [f"{a}<|end|>" for a in answers]


def test_every_answer_counts_where_turns_are_written_in_words(merging: PreTrainedTokenizerBase) -> None:
    _, labels = learnt(TALKS, merging, completion_only=True)
    said = [merging.decode(span) for span in spans(labels[0])]
    assert [text.strip() for text in said] == ["It is 9.</s>", "The answer is 9.</s>", "What else?</s>"]


def test_every_answer_counts_where_only_the_last_is_written_with_thoughts() -> None:
    """Qwen 3's template writes an answer otherwise when it is the last: it is no prefix of the whole then."""
    tokenizer = models.merging_tokenizer(models.THINKING)
    _, labels = learnt(TALKS, tokenizer, completion_only=True)
    said = [tokenizer.decode(span) for span in spans(labels[0])]
    assert [text.rstrip("\n") for text in said] == [
        "It is 9.<|im_end|>",
        "The answer is 9.<|im_end|>",
        "<think>\n\n</think>\n\nWhat else?<|im_end|>",
    ]


def test_tools_are_written_into_the_prompt(merging: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add", "description": "Adds."}}]
    row = {**TOLD[0], "tools": tools}
    ids, labels = learnt([row], merging, completion_only=True)
    args = sft_arguments(tmp_path, max_length=None)
    theirs, their_labels = trl_rows([row], merging, args, completion_only=True)
    assert (ids, labels) == (theirs, without_tail(their_labels, merging))
    assert '"name": "add"' in merging.decode(ids[0])
    assert merging.decode(spans(labels[0])[0]).strip() == "It is 9.</s>"


@pytest.mark.parametrize("rows", [PAIRS, TOLD_PAIRS], ids=["strings", "conversations"])
def test_pairs_are_the_same_as_trl(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    made = tokens.together(tokens.preference(rows, tokenizer, args))
    for name, theirs in trl_pairs(rows, tokenizer, args).items():
        # what the template writes after the end of the answer is no part of it
        assert [row[: len(own)] for row, own in zip(theirs, made[name], strict=True)] == made[name]
        assert all(not tokenizer.decode(row[len(own) :]).strip() for row, own in zip(theirs, made[name], strict=True))
    for side in ("chosen", "rejected"):
        for row, ids, mask in zip(rows, made[f"{side}_ids"], made[f"{side}_mask"], strict=True):
            # where a token goes over the boundary in one of the answers, the other has a token of the prompt there
            outside = tokenizer.decode([token for token, on in zip(ids, mask, strict=True) if not on])
            assert str(row["prompt"]).endswith(outside)
            assert mask == sorted(mask)


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("limit", [8, 12, 20])
@pytest.mark.parametrize("rows", [STRINGS, TOLD], ids=["strings", "conversations"])
def test_rows_are_cut_and_dropped_as_trl_does(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], limit: int, mode: str, tmp_path: Path
) -> None:
    args = sft_arguments(tmp_path, max_length=limit, truncation_mode=mode)
    ids, labels = trl_rows(rows, tokenizer, args, completion_only=True)
    if not ids:
        with pytest.raises(AlignError):
            tokens.together(tokens.language_modeling(rows, None, tokenizer, args, completion_only=True))
        return
    made = tokens.together(tokens.language_modeling(rows, None, tokenizer, args, completion_only=True))
    assert (made["input_ids"], made["labels"]) == (ids, without_tail(labels, tokenizer))
    assert made["align_length"] == [len(row) for row in ids]


def test_the_group_of_a_row_stays_with_it(tmp_path: Path) -> None:
    tokenizer = models.lab_tokenizer()
    lost = {"prompt": "What is 7 plus 2? " * 20, "completion": "It is 9."}
    args = sft_arguments(tmp_path, max_length=32)
    made = tokens.together(
        tokens.language_modeling([STRINGS[0], lost, TEXTS[0]], [0, 1, 1], tokenizer, args, completion_only=True)
    )
    assert made["align_group"] == [0, 1]
    assert made["input_ids"][1] == tokenizer(TEXTS[0]["text"] + "<|end|>")["input_ids"]


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("limit", [8, 12])
def test_pairs_are_dropped_as_trl_does(
    tokenizer: PreTrainedTokenizerBase, limit: int, mode: str, tmp_path: Path
) -> None:
    args = DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=limit, truncation_mode=mode
    )
    expected = trl_pairs(PAIRS, tokenizer, args)
    made = tokens.together(tokens.preference(PAIRS, tokenizer, args))
    assert {name: made[name] for name in expected} == expected
    assert len(made["align_length"]) == len(expected["prompt_ids"])


def test_nothing_left_to_learn_is_said(tmp_path: Path) -> None:
    tokenizer = models.lab_tokenizer()
    with pytest.raises(AlignError) as caught:
        tokens.together(
            tokens.language_modeling(
                STRINGS[:1], None, tokenizer, sft_arguments(tmp_path, max_length=2), completion_only=True
            )
        )
    assert str(caught.value) == "no row has an answer within max_length\n  -> raise `training.max_length`"
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=2)
    with pytest.raises(AlignError) as caught:
        tokens.together(tokens.preference(PAIRS, tokenizer, args))
    assert str(caught.value) == "every prompt alone fills max_length\n  -> raise `training.max_length`"


def test_questions_and_answers_are_the_whole_chat() -> None:
    """What a probe asks: the two parts together are the conversation, and the answer has its end."""
    tokenizer = models.lab_tokenizer()
    asked, said = ["What is 7 plus 2?", "Repeat: a b"], ["It is 9.", "a b"]
    prompts, answers = encode.question_ids(asked, said, TextTokenizer.of(tokenizer))
    assert prompts == encode.prompt_ids(asked, TextTokenizer.of(tokenizer))
    for question, answer, prompt, right in zip(asked, said, prompts, answers, strict=True):
        whole = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        assert prompt + right == tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
        assert right[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(right).strip() == f"{answer}<|end|>"


@pytest.mark.parametrize(("question", "answer"), [("The answer is", " 4."), ("user: Wh", "at is it?")])
def test_questions_and_answers_without_a_chat_template(question: str, answer: str) -> None:
    tokenizer = models.merging_tokenizer(None)
    [prompt], [right] = encode.question_ids([question], [answer], TextTokenizer.of(tokenizer))
    assert prompt + right == tokenizer(f"{question}{answer}</s>")["input_ids"]
    assert prompt[0] == tokenizer.bos_token_id and right[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(right).endswith(f"{answer}</s>")
