"""How many tokens a row has, counted with the model's own tokenizer and chat template, without torch.

The counts are those of `align.data.encode`, which prepares the same rows for training: a rendered conversation holds
its special tokens already; a text gets those of the tokenizer, and the end token after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from align.data import template
from align.data.formats import Example
from align.data.messages import Message, assistant, user
from align.errors import AlignError, FaultList

_BATCH: Final = 512
_SLACK: Final = 16
"""Tokens that a tokenizer may add to a text by itself: the beginning, the end, a leading space."""


@dataclass(frozen=True)
class Count:
    """Tokens of one row: before its first answer, and of its longest whole (a pair has two)."""

    prompt: int
    total: int


@dataclass(frozen=True)
class _Texts:
    """What is tokenised of one row: the text before the answer, if it matters, and that text with each answer."""

    prompt: str | None
    wholes: tuple[str, ...]
    rendered: bool


class Lengths:
    """Counts tokens of rows for one model; make it with `of`, which answers None where the model does not allow it."""

    def __init__(self, model_folder: Path, chat_template: str | None = None) -> None:
        """Args:
        model_folder: holds `tokenizer.json`.
        chat_template: the template's text; None takes the model's own.
        """
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._template = chat_template if chat_template is not None else template.find(model_folder)
        self._tokens = _special_tokens(model_folder)
        self._overhead = self._template_bytes()

    @classmethod
    def of(cls, model_folder: Path, chat_template: str | None = None) -> Lengths | None:
        """The lengths for a model, or None where its folder has no tokenizer.json."""
        return cls(model_folder, chat_template) if (model_folder / "tokenizer.json").is_file() else None

    def counts(self, examples: Sequence[Example], prompt_limit: int = 0) -> Iterator[Count]:
        """The count of each example, in order; raises AlignError where the chat template refuses one.

        Args:
            prompt_limit: prompts that surely have fewer tokens are given as 0, which saves tokenising them.
        """
        remaining = iter(examples)
        while batch := [self._texts(example, prompt_limit) for example in islice(remaining, _BATCH)]:
            ids: dict[bool, Iterator[list[int]]] = {}
            for rendered in (True, False):
                texts = [text for row in batch if row.rendered is rendered for text in (row.prompt or "", *row.wholes)]
                encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=not rendered)
                ids[rendered] = (encoding.ids for encoding in encoded)
            for row in batch:
                prompt = next(ids[row.rendered])
                wholes = [next(ids[row.rendered]) for _ in row.wholes]
                shared = 0 if row.prompt is None else min(_common(prompt, whole) for whole in wholes)
                yield Count(shared, max(map(len, wholes)))

    def cut_away(self, example: Example, max_length: int, truncation_mode: str = "keep_start") -> bool:
        """Whether truncation to `max_length` tokens leaves no token of the answer."""
        if self.surely_fits(example, max_length):
            return False
        return no_answer_left(example, next(self.counts([example])), max_length, truncation_mode)

    def surely_fits(self, example: Example, max_length: int) -> bool:
        """Whether the row has at most `max_length` tokens for its bytes alone; False says nothing.

        A token stands for at least one byte, so that only long rows must be tokenised at all.
        """
        sides = [value for name, value in example.value.items() if name not in ("tools", "margin", "columns")]
        if example.value.get("tools"):
            return False
        size = _SLACK
        for side in sides:
            if isinstance(side, str):
                size += len(side.encode())
                continue
            if self._overhead is None or any(message.keys() - {"role", "content"} for message in side):
                return False
            size += self._overhead * (len(side) + 1) + sum(len(message["content"].encode()) for message in side)
        return size <= max_length

    def check_template(self, examples: Sequence[Example], max_faults: int = 20) -> None:
        """Render one row of every sequence of roles, on which templates decide what they refuse; raises Faults."""
        seen = set()
        faults = FaultList()
        for example in examples:
            sides = [side for side in example.value.values() if isinstance(side, list)]
            roles = tuple(tuple(turn.get("role") for turn in side if isinstance(turn, dict)) for side in sides)
            if roles and roles not in seen and len(faults.found) < max_faults:
                seen.add(roles)
                with faults.collect():
                    self._texts(example)
        faults.raise_any()

    def _texts(self, example: Example, prompt_limit: int = 0) -> _Texts:
        texts = self._all_texts(example)
        short = texts.prompt is not None and len(texts.prompt.encode()) + _SLACK < prompt_limit
        return replace(texts, prompt=None) if short else texts

    def _all_texts(self, example: Example) -> _Texts:
        value = example.value
        if example.kind == "text":
            return _Texts(None, (self._ended(value["text"]),), rendered=False)
        if example.kind == "chat":
            messages = value["messages"]
            prompt = messages[: next(at for at, turn in enumerate(messages) if turn["role"] == "assistant")]
            answers = [messages[len(prompt) :]]
        elif example.kind == "prompt":
            asked = value["prompt"]
            is_text = isinstance(asked, str)
            return _Texts(None, (asked if is_text else self._render(example, asked, ask=True),), rendered=not is_text)
        else:
            prompt = value["prompt"]
            answers = [value[name] for name in ("completion", "chosen", "rejected") if name in value]
        if isinstance(prompt, str):
            return _Texts(prompt, tuple(self._ended(prompt + answer) for answer in answers), rendered=False)
        wholes = tuple(self._render(example, [*prompt, *answer]) for answer in answers)
        return _Texts(self._render(example, prompt, ask=True) if prompt else None, wholes, rendered=True)

    def _render(self, example: Example, messages: list[Message], *, ask: bool = False) -> str:
        if self._template is None:
            what = "the row is a conversation, and the model has no chat template"
            raise AlignError(what, "set chat_template: plain, or give a .jinja file", place=example.place)
        extra = {"tools": example.value["tools"]} if example.value.get("tools") else {}
        try:
            return template.render(self._template, messages, add_generation_prompt=ask, **self._tokens, **extra)
        except AlignError as error:
            raise AlignError(error.what, error.remedy, place=example.place) from None

    def _ended(self, text: str) -> str:
        end = self._tokens["eos_token"] or ""
        return text if text.endswith(end) else text + end

    def _template_bytes(self) -> int | None:
        """A bound on the bytes that the template adds to each message; None where it cannot be told."""
        if self._template is None:
            return None
        talk = [user("."), assistant("."), user("."), assistant(".")]
        try:
            return len(template.render(self._template, talk, add_generation_prompt=True, **self._tokens).encode())
        except AlignError:
            return None


def no_answer_left(example: Example, count: Count, max_length: int, truncation_mode: str) -> bool:
    """Whether a row of these counts has no answer token among the `max_length` that are kept; or, where it must be
    `whole`, more than these."""
    if truncation_mode == "whole":
        return count.total > max_length
    return truncation_mode == "keep_start" and example.kind != "text" and count.prompt >= max_length


def _common(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """Leading tokens that both share: tokens may merge across the boundary of prompt and answer."""
    differing = (at for at, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b)
    return next(differing, min(len(prompt), len(whole)))


def _special_tokens(model_folder: Path) -> dict[str, Any]:
    """The special tokens by name, as templates see them; `bos_token` and `eos_token` are there, if only as None."""
    tokens: dict[str, Any] = {"bos_token": None, "eos_token": None}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = model_folder / name
        for key, token in (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}).items():
            text = token.get("content") if isinstance(token, dict) else token
            if key.endswith("_token") and isinstance(text, str):
                tokens[key] = text
    return tokens
