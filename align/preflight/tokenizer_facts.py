"""What a tokenizer's files say of its tokens, held against the model: which ids there are, and which have a row. No
torch, and no tokenizer is made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from align.errors import AlignError
from align.policy.base import Base, heads
from align.run_folder import files

_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embedding", "embeddings")
_ROLES = ("pad_token", "eos_token", "bos_token", "unk_token")  # those that get into a row without being in its text


def check_ids(base: Base, texts: Iterable[Any]) -> str | None:
    """Whether every token that can get into a batch has a row in the embedding.

    Args:
        texts: whatever is tokenised, as text or inside lists and mappings: rows, the chat template.

    Returns:
        a note on tokens without a row that no text has, as some published models ship one; None where there are none.

    Raises:
        AlignError: a token without a row pads, begins or ends rows, is no special one, or is in one of the texts.
    """
    rows, found = embedding_rows(base), ids(base.path) if base.path else {}
    beyond = {token: id for token, id in found.items() if rows is not None and id >= rows}
    if not beyond:
        return None
    used = list(_used(base.path, beyond, texts)) if base.path else []
    ordered = sorted(used or beyond, key=lambda token: beyond[token])
    what = f"the token '{ordered[0]}' of the model '{base.name}' "
    what += f"and {len(ordered) - 1} more have ids from" if len(ordered) > 1 else "has the id"
    what += f" {beyond[ordered[0]]:,}{' on' if len(ordered) > 1 else ''}, but the embedding has {rows:,} rows"
    if not used:
        return f"{what}: no row uses {'them' if len(ordered) > 1 else 'it'}, and none can"
    remedy = "remove it from the tokenizer, or save the model after model.resize_token_embeddings(len(tokenizer))"
    raise AlignError(what, remedy)


def ids(folder: Path) -> dict[str, int]:
    """Every token of a tokenizer with its id, those included that transformers adds because a setting names them."""
    config, found = _mapping(folder / "tokenizer_config.json"), _vocabulary(folder)
    whole = bool(found)
    decoder = config.get("added_tokens_decoder")
    listed = {_text(token): id for id, token in decoder.items()} if isinstance(decoder, dict) else {}
    listed |= _mapping(folder / "added_tokens.json")
    named = [*listed, *_named(config), *_named(_mapping(folder / "special_tokens_map.json"))]
    for token in named:
        if token in found:
            continue
        if whole:  # it is added behind the last one, whatever number it had
            found[token] = max(found.values()) + 1
        elif str(listed.get(token, "")).isdigit():
            found[token] = int(listed[token])
    return found


def embedding_rows(base: Base) -> int | None:
    """The rows of the input embedding, from the heads of the weights, or else `vocab_size`; None where neither says."""
    text = base.config.get("text_config")
    configs = [text if isinstance(text, dict) else {}, base.config]
    size = next((one["vocab_size"] for one in configs if isinstance(one.get("vocab_size"), int)), None)
    shapes = {name: entry["shape"] for name, entry in heads(base.path) if name != "__metadata__"} if base.path else {}
    found = [
        shape[0]
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and name.split(".")[-2] in _EMBEDDINGS
    ]
    return size if size in found or not found else max(found)


def _vocabulary(folder: Path) -> dict[str, int]:
    """The tokens that the tokenizer's own files number; none where these are a sentencepiece model's alone."""
    whole = _mapping(folder / "tokenizer.json")
    if not whole:
        return _mapping(folder / "vocab.json")
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score, by id
        vocabulary = {entry[0]: id for id, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    found = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    found |= {_text(token): token.get("id") for token in _added(whole)}
    # what is no token and no number is left to the library that reads the file, and refuses it
    return {token: id for token, id in found.items() if isinstance(token, str) and token and isinstance(id, int)}


def _added(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens that a tokenizer.json has beside its vocabulary."""
    listed = whole.get("added_tokens")
    return [token for token in listed if isinstance(token, dict)] if isinstance(listed, list) else []


def _named(config: dict[str, Any]) -> Iterator[str]:
    """The special tokens that settings name, by their texts."""
    for key, value in config.items():
        if key.endswith("_token"):
            yield from filter(None, [_text(value)])
        elif key in ("additional_special_tokens", "extra_special_tokens"):
            listed = list(value.values()) if isinstance(value, dict) else value
            yield from filter(None, map(_text, listed if isinstance(listed, list) else []))


def _used(folder: Path, beyond: dict[str, int], texts: Iterable[Any]) -> Iterator[str]:
    """Which tokens get into a batch. A special one that has no role, as one that stands for images, does so where it is
    written; an ordinary one is there to be."""
    config = _mapping(folder / "special_tokens_map.json") | _mapping(folder / "tokenizer_config.json")
    roles = {_text(config[role]) for role in _ROLES if config.get(role)}
    special = _special(folder, config)
    left = {token: json.dumps(token, ensure_ascii=False)[1:-1] for token in (beyond.keys() & special) - roles}
    yield from beyond.keys() - left.keys()
    for text in texts:
        line = json.dumps(text, ensure_ascii=False, default=str) if left else ""
        for token in [token for token, escaped in left.items() if escaped in line]:
            del left[token]
            yield token


def _special(folder: Path, config: dict[str, Any]) -> set[str]:
    """The tokens that are no words."""
    decoder = config.get("added_tokens_decoder")
    added = _added(_mapping(folder / "tokenizer.json"))
    added += [token for token in decoder.values() if isinstance(token, dict)] if isinstance(decoder, dict) else []
    return {*_named(config), *(_text(token) for token in added if token.get("special"))}


def _text(token: Any) -> str:
    """A token as text: settings write it so, or as a mapping with its flags."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _mapping(path: Path) -> dict[str, Any]:
    found = files.read_object(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
