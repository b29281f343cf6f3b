"""A model's tokenizer with its chat template, as it is read by the checks without torch and by the training.

Both read the same: the parent from the model's folder, the child from the tokenizer that transformers loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from align.data import template
from align.data.conversation import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAG: Final = re.compile(r"</?[\w:-]+>|\s*")
_BATCH: Final = 512


class Encoded(Protocol):
    """The tokens of one text, and which of them stand for which of its characters."""

    @property
    def ids(self) -> list[int]: ...

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Every token that has a character of `text[start:end]`: the first, and one past the last."""


class TextTokenizer:
    """Texts to tokens.

    Args:
        backend: a `tokenizers.Tokenizer`; or, where transformers has none for it, its own Python tokenizer.
        tokens: the special tokens by name, as chat templates see them.
        chat_template: the template's text; None where there is none.
    """

    def __init__(self, backend: Any, tokens: dict[str, Any], chat_template: str | None) -> None:
        self._backend = backend
        self._fast = hasattr(backend, "encode_batch")
        self.tokens = {"bos_token": None, "eos_token": None} | tokens
        self.bos, self.eos = self.tokens["bos_token"], self.tokens["eos_token"]
        self.template = ChatTemplate(chat_template, self.tokens, self._special()) if chat_template else None

    @classmethod
    def of_folder(
        cls, folder: Path, chat_template: str | None = None, replaced: dict[str, str] | None = None
    ) -> TextTokenizer | None:
        """That of a model's folder, or None where it has no tokenizer.json.

        Args:
            chat_template: the text of another template than the model's own.
            replaced: special tokens by name, in place of the folder's.
        """
        if not (folder / "tokenizer.json").is_file():
            return None
        from tokenizers import Tokenizer

        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        text = chat_template if chat_template is not None else template.find(folder)
        return cls(backend, special_tokens(folder) | (replaced or {}), text)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TextTokenizer:
        """That of transformers' tokenizer."""
        named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        own = tokenizer.chat_template
        text = own.get("default") if isinstance(own, dict) else own
        return _kept(tokenizer, text, tuple(sorted(named.items())))

    @cached_property
    def adds(self) -> tuple[bool, bool]:
        """Whether the tokenizer puts its beginning before a text by itself, and its end after one."""
        ids = self._ids([""], special=True)[0]
        return (
            bool(self.bos) and self.id(self.bos) in ids[:1],
            bool(self.eos) and self.eos != self.bos and self.id(self.eos) in ids[-1:],
        )

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids with which the chat template ends an answer, and a call of a tool."""
        tokens = self.template.ends if self.template else ()
        return tuple(found for found in map(self.id, tokens) if found is not None)

    def closing(self, *, conversation: bool) -> list[int]:
        """What stands after the words of a last answer, as it is trained: its end, and what the chat template writes
        after that."""
        text = self.template.closing if conversation and self.template else ""
        return self.ids([text or self.eos or ""], special=False)[0]

    def id(self, token: str) -> int | None:
        """The id of a token of the vocabulary."""
        found = self._backend.token_to_id(token) if self._fast else self._backend.convert_tokens_to_ids(token)
        return None if found is None else int(found)

    def encode(self, texts: Sequence[str], *, special: bool) -> list[Encoded]:
        """The tokens of texts.

        Args:
            special: let the tokenizer add its own special tokens; a rendered conversation holds them already.
        """
        if not self._fast:
            return [_Slow(self, text, special) for text in texts]
        return [_Fast(found) for found in self._batches(texts, special, "encode_batch")]

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if not self._fast:
            return [list(self._backend(text, add_special_tokens=special)["input_ids"]) for text in texts]
        return [list(found.ids) for found in self._batches(texts, special, "encode_batch_fast")]

    def ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """The ids of texts, where nothing is asked of their characters."""
        return self._ids(texts, special=special)

    def _batches(self, texts: Sequence[str], special: bool, method: str) -> list[Any]:
        self._backend.no_truncation()  # transformers sets both for its own calls, anew for each
        self._backend.no_padding()
        encode, found = getattr(self._backend, method), list[Any]()
        for start in range(0, len(texts), _BATCH):
            found += encode(list(texts[start : start + _BATCH]), add_special_tokens=special)
        return found

    def _special(self) -> set[str]:
        """Tokens that may end a turn: those that were added to the vocabulary, without tags that stand for structure
        inside an answer, as `</tool_call>`, unless the tokenizer calls them special."""
        named = {token for token in self.tokens.values() if isinstance(token, str)}
        if not self._fast:
            return named | {str(token) for token in self._backend.all_special_tokens}
        added = self._backend.get_added_tokens_decoder().values()
        return named | {
            one.content for one in added if one.content.strip() and (one.special or not _TAG.fullmatch(one.content))
        }


class _Fast:
    """An encoding of the `tokenizers` library."""

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding

    @property
    def ids(self) -> list[int]:
        return list(self._encoding.ids)

    def span(self, start: int, end: int) -> tuple[int, int]:
        encoding = self._encoding
        first = next((t for t in map(encoding.char_to_token, range(start, end)) if t is not None), None)
        if first is None:
            return 0, 0
        last = next(t for t in map(encoding.char_to_token, range(end - 1, start - 1, -1)) if t is not None)
        # one character may be several tokens, of which this is the first
        while (after := encoding.token_to_chars(last + 1) if last + 1 < len(encoding) else None) and after[0] < end:
            last += 1
        return first, last + 1


class _Slow:
    """A text of a tokenizer that does not tell which characters a token stands for: prefixes are tokenised too."""

    def __init__(self, tokenizer: TextTokenizer, text: str, special: bool) -> None:
        self._tokenizer, self._text, self._with = tokenizer, text, special
        self.ids = tokenizer.ids([text], special=special)[0]

    def span(self, start: int, end: int) -> tuple[int, int]:
        return self._shared(start), len(self.ids) if end >= len(self._text) else self._shared(end)

    def _shared(self, at: int) -> int:
        prefix = self._tokenizer.ids([self._text[:at]], special=self._with)[0]
        return next((k for k, (a, b) in enumerate(zip(prefix, self.ids, strict=False)) if a != b), len(prefix))


@lru_cache(maxsize=4)
def _kept(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, tokens: tuple[tuple[str, str], ...]
) -> TextTokenizer:
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else tokenizer
    return TextTokenizer(backend, dict(tokens), chat_template)


def special_tokens(folder: Path) -> dict[str, Any]:
    """The special tokens of a model's folder by name, as templates see them."""
    tokens: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        for key, token in (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}).items():
            text = token.get("content") if isinstance(token, dict) else token
            if key.endswith("_token") and isinstance(text, str):
                tokens[key] = text
    return tokens
