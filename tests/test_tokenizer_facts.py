"""Tokens that the model has no row for: found in the tokenizer's files, as transformers will number them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from align.errors import AlignError
from align.lab import MODEL_DIR
from align.policy import base
from align.preflight import tokenizer_facts


def changed(folder: Path, file: str, **values: Any) -> Path:
    """The lab model with other values in one of its JSON files; 800 tokens, 800 rows."""
    if not folder.exists():
        shutil.copytree(MODEL_DIR, folder)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def said(folder: Path, *texts: Any) -> str | None:
    """The note, or what is refused."""
    try:
        return tokenizer_facts.check_ids(base.resolve(str(folder), None, root=Path()), texts)
    except AlignError as error:
        return f"{error.what} -> {error.remedy}"


def token(content: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, "special": special, **flags}


def test_every_shipped_token_has_a_row() -> None:
    lab = base.resolve("lab", None, root=Path())
    assert tokenizer_facts.embedding_rows(lab) == 800
    assert tokenizer_facts.check_ids(lab, ["<|user|>"]) is None
    assert tokenizer_facts.ids(MODEL_DIR) == AutoTokenizer.from_pretrained(MODEL_DIR).get_vocab()


@pytest.mark.parametrize(
    "values",
    [
        {"pad_token": "[PAD]"},
        {"image_token": "<img>"},
        {"extra_special_tokens": ["<|user|>", "<q>", "<r>"]},
        {"added_tokens_decoder": {"805": token("<z>", special=False)}},
    ],
)
def test_numbers_are_those_that_transformers_gives(values: dict[str, Any], tmp_path: Path) -> None:
    """It adds what a setting names behind the last token, whatever number the setting gives it."""
    folder = changed(tmp_path / "m", "tokenizer_config.json", **values)
    assert tokenizer_facts.ids(folder) == AutoTokenizer.from_pretrained(folder).get_vocab()


def test_an_added_word_is_refused_used_or_not(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    tokenizer.add_tokens(["<tide>", "<ebb>"])
    shutil.copytree(MODEL_DIR, tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    assert said(tmp_path / "m", "nothing of it") == (
        f"the token '<tide>' of the model '{tmp_path / 'm'}' and 1 more have ids from 800 on, but the embedding has "
        "800 rows -> remove it from the tokenizer, or save the model after "
        "model.resize_token_embeddings(len(tokenizer))"
    )


def test_a_padding_token_is_in_every_batch(tmp_path: Path) -> None:
    folder = changed(tmp_path / "m", "tokenizer_config.json", pad_token="[PAD]")
    assert said(folder) == (
        f"the token '[PAD]' of the model '{folder}' has the id 800, but the embedding has 800 rows -> remove it from "
        "the tokenizer, or save the model after model.resize_token_embeddings(len(tokenizer))"
    )


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("a plain row", False),
        ({"messages": [{"role": "user", "content": 'What is <im"g>?'}]}, True),
        ([["deep", {"x": '<im"g>'}]], True),
    ],
)
def test_a_special_token_where_it_is_written(text: Any, refused: bool, tmp_path: Path) -> None:
    """Gemma 3 ships one for images beside the text model, which has no row for it."""
    folder = changed(tmp_path / "m", "tokenizer_config.json", image_token='<im"g>')
    what = f"the token '<im\"g>' of the model '{folder}' has the id 800, but the embedding has 800 rows"
    remedy = "remove it from the tokenizer, or save the model after model.resize_token_embeddings(len(tokenizer))"
    expected = f"{what} -> {remedy}" if refused else f"{what}: no row uses it, and none can"
    assert said(folder, "another", text) == expected


def test_the_rows_are_those_of_the_weights(tmp_path: Path) -> None:
    """`vocab_size` of the text model, and the head of the weights where it is not given."""
    folder = changed(tmp_path / "m", "config.json", vocab_size=None)
    lab = base.resolve(str(folder), None, root=Path())
    assert tokenizer_facts.embedding_rows(lab) == 800
    nested = base.Base("hub/name", None, "1", {"vocab_size": 7, "text_config": {"vocab_size": 9}})
    assert tokenizer_facts.embedding_rows(nested) == 9
    assert tokenizer_facts.embedding_rows(base.Base("hub/name", None, "1", {})) is None
    assert tokenizer_facts.check_ids(nested, ["text"]) is None


def test_other_vocabularies(tmp_path: Path) -> None:
    """Unigram numbers its tokens by place; GPT-2's old files stand apart; a sentencepiece model is not read."""
    for name in ("unigram", "old", "pieces"):
        (tmp_path / name).mkdir()
    unigram = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": None}
    (tmp_path / "unigram/tokenizer.json").write_text(json.dumps(unigram))
    assert tokenizer_facts.ids(tmp_path / "unigram") == {"a": 0, "b": 1}
    (tmp_path / "old/vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "old/added_tokens.json").write_text('{"<c>": 2}')
    assert tokenizer_facts.ids(tmp_path / "old") == {"a": 0, "b": 1, "<c>": 2}
    settings = {"eos_token": "</s>", "added_tokens_decoder": {"31999": token("<pad>", special=True)}}
    (tmp_path / "pieces/tokenizer_config.json").write_text(json.dumps(settings))
    assert tokenizer_facts.ids(tmp_path / "pieces") == {"<pad>": 31999}
