"""What is known of rows before a model is loaded: how many tokens they have, what a template leaves out of them, which
pairs prefer nothing. Counted with the model's own tokenizer and chat template, by the code that encodes them later."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from align.data import encode
from align.data.conversation import THOUGHTS
from align.data.encode import Text, Turns
from align.data.formats import Example
from align.data.messages import assistant, user
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError, FaultList

_BATCH: Final = 512
_SLACK: Final = 16
"""Tokens that a tokenizer may add to a text by itself: the beginning, the end, a leading space."""

_SIDES: Final = ("chosen", "rejected")
_NOT_READ: Final = frozenset({"tools", "margin", "columns", "label"})


@dataclass(frozen=True)
class Count:
    """Tokens of one row: before the first that is learnt, through the last that is, and all; of a pair, those of the
    side that has most."""

    prompt: int
    last: int
    total: int


class Lengths:
    """Counts tokens of rows for one model."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self._overhead = self._template_bytes()

    @classmethod
    def of(
        cls, model_folder: Path, chat_template: str | None = None, replaced: dict[str, str] | None = None
    ) -> Lengths | None:
        """The lengths for a model, or None where its folder has no tokenizer.json.

        Args:
            chat_template: the template's text; None takes the model's own.
            replaced: special tokens by name, in place of the folder's.
        """
        tokenizer = TextTokenizer.of_folder(model_folder, chat_template, replaced)
        return None if tokenizer is None else cls(tokenizer)

    def counts(self, examples: Sequence[Example], turns: Turns = "all") -> Iterator[Count]:
        """The count of each example, in order; raises AlignError where the chat template refuses one.

        Args:
            turns: which of the assistant's turns are learnt.
        """
        for start in range(0, len(examples), _BATCH):
            batch = [self._texts(example, turns) for example in examples[start : start + _BATCH]]
            found = iter(encode.rows([text for texts in batch for text in texts], self.tokenizer))
            for texts in batch:
                rows = [next(found) for _ in texts]
                longest = max(rows, key=lambda row: len(row.ids))
                yield Count(min(row.first for row in rows), longest.last, len(longest.ids))

    def surely_fits(self, example: Example, max_length: int) -> bool:
        """Whether the row has at most `max_length` tokens for its bytes alone; False says nothing.

        A token stands for at least one byte, so that only long rows must be tokenised at all.
        """
        sides = [value for name, value in example.value.items() if name not in _NOT_READ]
        if example.value.get("tools"):
            return False
        size = _SLACK
        for side in sides:
            if isinstance(side, str):
                size += len(side.encode())
                continue
            if self._overhead is None or any(message.keys() - {"role", "content", "train"} for message in side):
                return False
            size += self._overhead * (len(side) + 1) + sum(len(message["content"].encode()) for message in side)
        return size <= max_length

    def check_template(self, examples: Sequence[Example], max_faults: int = 20) -> None:
        """Render one row of every sequence of roles and keys, on which templates decide what they refuse; raises
        Faults."""
        seen = set()
        faults = FaultList()
        for example in examples:
            sides = [side for side in example.value.values() if isinstance(side, list)]
            shape = tuple(tuple((turn.get("role"), *turn) for turn in side if isinstance(turn, dict)) for side in sides)
            if shape and shape not in seen and len(faults.found) < max_faults:
                seen.add(shape)
                with faults.collect():
                    self._texts(example)
        faults.raise_any()

    def left_out(self, examples: Sequence[Example], turns: Turns = "all") -> dict[str, tuple[int, Example]]:
        """What the chat template does not write of rows (thoughts, tools, ...): in how many, and the first of them.

        Args:
            turns: which of the assistant's turns are learnt; thoughts of others are not missed.
        """
        counts: Counter[str] = Counter()
        first: dict[str, Example] = {}
        template = self.tokenizer.template
        for example in examples:
            if template is None or not _may_lose(example):
                continue
            value, found = example.value, set[str]()
            for answer in [value[name] for name in ("messages", "completion", *_SIDES) if name in value] or [[]]:
                messages = answer if "messages" in value else [*value["prompt"], *answer]
                with_answer = any(message["role"] == "assistant" for message in messages)
                if with_answer or value.get("tools"):
                    found |= template.left_out(messages, value.get("tools"), last=turns == "last")
            counts.update(found)
            for what in found:
                first.setdefault(what, example)
        return {what: (counts[what], first[what]) for what in sorted(counts)}

    def prefers_nothing(self, example: Example, max_length: int | None) -> bool:
        """Whether the two sides of a pair are the same tokens to the model, as far as `max_length` keeps them."""
        cut = max_length is not None and not self.surely_fits(example, max_length)
        if not cut and not _alike(example):
            return False
        chosen, rejected = encode.rows(self._texts(example), self.tokenizer)
        return chosen.ids[:max_length] == rejected.ids[:max_length]

    def _texts(self, example: Example, turns: Turns = "all") -> list[Text]:
        """The text of a row, or of both sides of a pair."""
        try:
            if example.kind == "preference":
                return [encode.side(example.value, name, self.tokenizer) for name in _SIDES]
            return [encode.answers(example.value, self.tokenizer, turns)]
        except AlignError as error:
            raise AlignError(error.what, error.remedy, place=example.place) from None

    def _template_bytes(self) -> int | None:
        """A bound on the bytes that the template adds to each message; None where it cannot be told."""
        if self.tokenizer.template is None:
            return None
        try:
            return len(self.tokenizer.template.ask([user("."), assistant("."), user("."), assistant(".")]).encode())
        except AlignError:
            return None


def no_answer_left(example: Example, count: Count, max_length: int, truncation_mode: str) -> bool:
    """Whether a row of these counts has no learnt token among the `max_length` that are kept; or, where it must be
    `whole`, more than these."""
    if truncation_mode == "whole":
        return count.total > max_length
    if example.kind in ("text", "prompt"):
        return False
    if truncation_mode == "keep_end":
        return count.last <= count.total - max_length
    return count.prompt >= max_length


def _may_lose(example: Example) -> bool:
    """Whether a row has what some templates do not write."""
    if example.value.get("tools"):
        return True
    sides = [side for name, side in example.value.items() if name not in _NOT_READ and isinstance(side, list)]
    return any(
        "tool_calls" in message or "</think>" in message["content"] or any(message.get(key) for key in THOUGHTS)
        for side in sides
        for message in side
    )


def _alike(example: Example) -> bool:
    """Whether what the two sides say openly is the same, so that only what a template may drop tells them apart."""
    one, other = (_openly(example.value[name]) for name in _SIDES)
    return one == other


def _openly(side: Any) -> str:
    if isinstance(side, str):
        return side.strip()
    said = [[turn["role"], turn["content"].rpartition("</think>")[2].strip(), turn.get("tool_calls")] for turn in side]
    return json.dumps(said, default=str)
