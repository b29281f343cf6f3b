"""Rows as token ids, with which of them are learnt: the answers' words and their ends, found in one rendering.

Chat rows, prompt/completion rows and plain text may stand in one table, since replay mixes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

from align.data.messages import Message, assistant, user
from align.data.tokenizer import Encoded, TextTokenizer
from align.errors import AlignError

Record = dict[str, Any]
Turns = Literal["all", "last"]
IGNORE: Final = -100  # transformers' label of a token that does not count
_BATCH: Final = 512

_NO_TEMPLATE: Final = "the row is a conversation, but the model has no chat template"


@dataclass(frozen=True)
class Text:
    """A row, or one side of a pair, as the model reads it.

    Attributes:
        spans: what is learnt, in characters.
        rendered: whether a template wrote it, its special tokens with it.
        tail: characters at the end that follow the end of the last answer.
    """

    text: str
    spans: list[tuple[int, int]]
    rendered: bool
    tail: int = 0


@dataclass(frozen=True)
class Row:
    """Token ids, and the ranges of them that are learnt, in order."""

    ids: list[int]
    learnt: list[tuple[int, int]]

    @property
    def labels(self) -> list[int]:
        """`ids` where they are learnt, else IGNORE."""
        labels = [IGNORE] * len(self.ids)
        for start, end in self.learnt:
            labels[start:end] = self.ids[start:end]
        return labels

    @property
    def mask(self) -> list[int]:
        """1 where a token is learnt, else 0."""
        mask = [0] * len(self.ids)
        for start, end in self.learnt:
            mask[start:end] = [1] * (end - start)
        return mask

    @property
    def first(self) -> int:
        """Where the first learnt token stands; the row's length where none is learnt."""
        return self.learnt[0][0] if self.learnt else len(self.ids)

    @property
    def last(self) -> int:
        """One past the last learnt token."""
        return self.learnt[-1][1] if self.learnt else 0


@dataclass(frozen=True)
class Pair:
    """The two sides of a preference pair; `prompt` is how many tokens both begin with before any answer."""

    chosen: Row
    rejected: Row
    prompt: int


def answers(value: Record, tokenizer: TextTokenizer, turns: Turns = "all") -> Text:
    """The text of a canonical row `{"messages"}`, `{"prompt", "completion"}`, `{"text"}` or `{"prompt"}`.

    Args:
        turns: which of the assistant's turns are learnt.

    Raises:
        AlignError: the chat template refuses the conversation, or there is none.
    """
    if "text" in value:
        return _plain("", value["text"], tokenizer, learnt=True)
    if "messages" in value:
        return _chat(value, [], value["messages"], tokenizer, turns)
    if "completion" in value:
        return side(value, "completion", tokenizer, turns)
    prompt = value["prompt"]
    if isinstance(prompt, str):
        return _plain("", prompt, tokenizer, learnt=False)
    return Text(_template(tokenizer).ask(prompt, value.get("tools")), [], rendered=True)


def side(value: Record, name: str, tokenizer: TextTokenizer, turns: Turns = "all") -> Text:
    """The prompt of a row with the answer that stands in the field `name`."""
    if isinstance(value["prompt"], str):
        return _plain(value["prompt"], value[name], tokenizer, learnt=True)
    return _chat(value, value["prompt"], value[name], tokenizer, turns)


def rows(texts: Sequence[Text], tokenizer: TextTokenizer) -> list[Row]:
    """Tokenised, not truncated."""
    found: list[Row | None] = [None] * len(texts)
    for kind in (True, False):
        where = [i for i, text in enumerate(texts) if text.rendered is kind]
        encoded = tokenizer.encode([texts[i].text for i in where], special=not kind)
        for i, one in zip(where, encoded, strict=True):
            found[i] = _row(texts[i], one)
    return [row for row in found if row is not None]


def encoded(values: Sequence[Record], tokenizer: TextTokenizer, turns: Turns = "all") -> Iterator[Row]:
    """The rows of a table, a batch of them in memory at a time."""
    remaining = iter(values)
    while batch := [answers(value, tokenizer, turns) for value in islice(remaining, _BATCH)]:
        yield from rows(batch, tokenizer)


def pairs(values: Sequence[Record], tokenizer: TextTokenizer) -> Iterator[Pair]:
    """The pairs of a table, a batch of them in memory at a time."""
    remaining = iter(values)
    while batch := list(islice(remaining, _BATCH)):
        texts = [side(value, name, tokenizer) for value in batch for name in ("chosen", "rejected")]
        found = rows(texts, tokenizer)
        for chosen, rejected in zip(found[::2], found[1::2], strict=True):
            yield Pair(chosen, rejected, min(chosen.first, rejected.first, shared(chosen.ids, rejected.ids)))


def question_ids(
    prompts: Sequence[str], answers_: Sequence[str], tokenizer: TextTokenizer
) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens of questions, as `prompt_ids` gives them, and of their right answers with the end of the turn."""
    values: list[Record] = [{"prompt": p, "completion": a} for p, a in zip(prompts, answers_, strict=True)]
    if tokenizer.template is not None:
        values = [{"prompt": [user(p)], "completion": [assistant(a)]} for p, a in zip(prompts, answers_, strict=True)]
    found = list(encoded(values, tokenizer))
    return [row.ids[: row.first] for row in found], [row.ids[row.first : row.last] for row in found]


def prompt_ids(prompts: Sequence[str | list[Message]], tokenizer: TextTokenizer) -> list[list[int]]:
    """Prompts as the model sees them, up to where its answer begins: texts and conversations; a text goes through the
    chat template where there is one."""
    conversations = [[user(one)] if isinstance(one, str) and tokenizer.template else one for one in prompts]
    texts = [answers({"prompt": one}, tokenizer) for one in conversations]
    return [row.ids for row in rows(texts, tokenizer)]


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two rows share."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _template(tokenizer: TextTokenizer) -> Any:
    if tokenizer.template is None:
        raise AlignError(_NO_TEMPLATE, "set `chat_template: plain`, or give a .jinja file")
    return tokenizer.template


def _chat(value: Record, prompt: list[Message], answer: list[Message], tokenizer: TextTokenizer, turns: Turns) -> Text:
    messages = [*prompt, *answer]
    written = _template(tokenizer).write(messages, value.get("tools"))
    after = [turn for turn in written.turns if turn.message >= len(prompt)]
    learnt = [turn for turn in after if messages[turn.message].get("train", True)]
    spans = [span for turn in (learnt[-1:] if turns == "last" else learnt) for span in turn.spans]
    return Text(written.text, spans, rendered=True, tail=len(written.tail))


def _plain(prompt: str, answer: str, tokenizer: TextTokenizer, *, learnt: bool) -> Text:
    """A text with its end after it, unless it is a prompt; without the beginning that the tokenizer puts there."""
    adds_bos, adds_eos = tokenizer.adds
    whole = prompt + answer
    if adds_bos and tokenizer.bos and whole.startswith(tokenizer.bos):
        prompt = prompt.removeprefix(tokenizer.bos) if prompt else prompt
        whole = whole.removeprefix(tokenizer.bos)
    end = tokenizer.eos or ""
    if learnt and adds_eos:
        whole = whole.removesuffix(end)
    elif learnt and not whole.endswith(end):
        whole += end
    return Text(whole, [(len(prompt), len(whole))] if learnt else [], rendered=False)


def _row(text: Text, encoded: Encoded) -> Row:
    ids = encoded.ids
    if not text.rendered and text.spans == [(0, len(text.text))]:
        return Row(ids, [(0, len(ids))])  # special tokens too
    learnt = [span for start, end in text.spans if (span := encoded.span(start, end)) != (0, 0)]
    if learnt and not text.rendered:
        learnt[-1] = (learnt[-1][0], len(ids))  # with the end that the tokenizer added
    return Row(ids, learnt)
