"""Rows that a policy writes: answers to prompts, or questions and answers, or texts from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from align.data import encode, mixing
from align.data.messages import Message, user
from align.data.tokenizer import TextTokenizer
from align.forgetting.bench import Bench
from align.written import asking
from align.written.filters import Draft
from align.written.keys import SelfWritten
from align.written.sample import Said, Sampling, sample

Prompt = str | list[Message]
_NO_QUESTION: Final = "?"  # stands for one that was not written, so that batches have a row for it


def drafts(bench: Bench, keys: SelfWritten, prompts: Sequence[Prompt] | None, seed: int) -> list[Draft]:
    """So many rows as the recipe asks for, before any filter. A collective call where several processes share.

    Args:
        prompts: what is asked, in turns in random order; None where the policy writes that too.
        seed: of the stage.
    """
    how = Sampling(keys.max_new_tokens, keys.temperature, keys.top_p, f"written {seed}")
    tokenizer = TextTokenizer.of(bench.tokenizer)
    if prompts is not None:
        return _answered(bench, mixing.draw(list(prompts), keys.rows, seed), how, tokenizer)
    if tokenizer.template is None:
        return _texts(bench, keys.rows, how)
    questions = _questions(bench, keys.rows, replace(how, seed=f"{how.seed} questions"), tokenizer)
    found = _answered(bench, [one or _NO_QUESTION for one in questions], how, tokenizer)
    return [replace(draft, asked=question is not None) for draft, question in zip(found, questions, strict=True)]


def decoded(bench: Bench, said: Said, prompt: Prompt, ids: Sequence[int]) -> str:
    """The words of an answer; to a text prompt with the space that stands between the two.

    Args:
        ids: tokens of the prompt.
    """
    if not isinstance(prompt, str):
        return str(bench.tokenizer.decode(said.ids, skip_special_tokens=True)).strip()
    before = str(bench.tokenizer.decode(list(ids), skip_special_tokens=True))
    whole = str(bench.tokenizer.decode([*ids, *said.ids], skip_special_tokens=True))
    return whole.removeprefix(before)


def has_room(bench: Bench, ids: Sequence[int], tokens: int) -> bool:
    """Whether an answer of so many tokens to this prompt stays within the model's context."""
    context = getattr(bench.model.config.get_text_config(), "max_position_embeddings", None)
    return not isinstance(context, int) or len(ids) + tokens <= context


def asked_as(prompts: Sequence[Prompt], tokenizer: TextTokenizer) -> list[Prompt]:
    """Prompts as they are asked: a text is a user's turn where there is a chat template."""
    return [[user(one)] if isinstance(one, str) and tokenizer.template else one for one in prompts]


def _answered(bench: Bench, prompts: Sequence[Prompt], how: Sampling, tokenizer: TextTokenizer) -> list[Draft]:
    prompts = asked_as(prompts, tokenizer)
    rows = encode.prompt_ids(prompts, tokenizer)
    found = sample(bench, rows, how)
    return [
        Draft(prompt, decoded(bench, said, prompt, ids), said.ids, said.ended, len(ids) + len(said.ids))
        for prompt, ids, said in zip(prompts, rows, found, strict=True)
    ]


def _texts(bench: Bench, count: int, how: Sampling) -> list[Draft]:
    """Running texts, from the token that begins one."""
    own: Any = bench.tokenizer
    start = own.bos_token_id if own.bos_token_id is not None else own.eos_token_id
    found = sample(bench, [[int(start)]] * count, how)
    texts = [str(own.decode(said.ids, skip_special_tokens=True)).strip() for said in found]
    return [Draft(None, text, said.ids, said.ended, 1 + len(said.ids)) for text, said in zip(texts, found, strict=True)]


def _questions(bench: Bench, count: int, how: Sampling, tokenizer: TextTokenizer) -> list[str | None]:
    """What a user might ask, as the policy goes on from where the chat template has the user's words; None where it
    did not come to the end of a question, or where that leaves no room for an answer."""
    before, after = asking.around_question(tokenizer)
    start, closing = tokenizer.ids([before, after], special=False)
    ends = [token for token in closing if token in bench.tokenizer.all_special_ids][:1]
    found = sample(bench, [start] * count, how, ends)
    questions: list[str | None] = []
    for said in found:
        text, ended = str(bench.tokenizer.decode(said.ids, skip_special_tokens=True)), said.ended
        if not ends and after.strip():  # the template ends a user's turn with plain words
            text, mark, _ = text.partition(after.strip())
            ended = bool(mark)
        fits = has_room(bench, [*start, *said.ids, *closing], how.tokens)
        questions.append(text.strip() if ended and fits and text.strip() else None)
    return questions
