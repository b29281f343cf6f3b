"""What ends an answer: the tokenizer's end token, the template's end of a turn, and what the base stops at already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from align.data.tokenizer import TextTokenizer
from align.errors import AlignError


def check(tokenizer: TextTokenizer, model: str, replaced: dict[str, str]) -> list[tuple[str, AlignError]]:
    """Faults of the special tokens, each with the key of `model:` that mends it.

    Args:
        model: its name, for messages.
        replaced: the special tokens that the recipe names, by their names in the tokenizer.
    """
    found = [
        (name, AlignError(f"the tokenizer of '{model}' has no token '{token}'", "choose a token of its vocabulary"))
        for name, token in replaced.items()
        if tokenizer.id(token) is None
    ]
    if tokenizer.eos is None:
        what = f"the tokenizer of '{model}' has no EOS token"
        found.append(("base", AlignError(what, "set `model.eos_token` to one of its tokens")))
    return found


def notes(tokenizer: TextTokenizer, model: Path) -> list[str]:
    """What is worth knowing of what the model's chat template puts around the words of a conversation."""
    template = tokenizer.template
    if template is None:
        return []
    dated = "strftime_now" in template.text
    found = (
        ["the chat template writes today's date, so the same rows will have different tokens tomorrow"] if dated else []
    )
    return found + _of_turns(tokenizer, template.ends, model)


def _of_turns(tokenizer: TextTokenizer, ends: Sequence[str], model: Path) -> list[str]:
    """What ends an answer, where that is not the tokenizer's end token alone."""
    eos = tokenizer.eos
    known = [token for token in ends if tokenizer.id(token) is not None]
    if eos is not None and not known:
        what = "the chat template writes no end-of-turn token after an answer"
        return [f"{what}: {eos} is appended, so that the model learns to stop"]
    others = [token for token in known if token != eos and tokenizer.id(token) not in stops(model)]
    if eos is None or not others:
        return []
    return [
        f"the chat template ends answers with {' or '.join(others)}, but the tokenizer's EOS token is {eos}: "
        "trained models stop at any of them (`model.eos_token` sets another)"
    ]


def stops(model: Path) -> list[int]:
    """The ids at which the base stops by its own settings."""
    file = model / "generation_config.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    listed = found if isinstance(found, list) else [found]
    return [one for one in listed if isinstance(one, int)]
