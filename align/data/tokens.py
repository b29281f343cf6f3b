"""Canonical rows as the token columns that the trainers take, with the columns that their order is made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from align.data import encode
from align.errors import AlignError
from align.trainers.rows import GROUP, LENGTH

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = dict[str, Any]
Columns = dict[str, list[Any]]
_SIDES = ("chosen_ids", "rejected_ids")


def language_modeling(
    rows: Sequence[Record],
    groups: Sequence[int] | None,
    tokenizer: PreTrainedTokenizerBase,
    args: Any,
    *,
    completion_only: bool,
) -> Columns:
    """`input_ids` and `labels`, cut to `max_length` unless rows are packed afterwards.

    Raises:
        AlignError: no row has a token left that counts.
    """
    ids, labels = encode.for_language_modeling(rows, tokenizer, completion_only=completion_only)
    if not args.packing and args.max_length is not None:
        cut = slice(None, args.max_length) if args.truncation_mode == "keep_start" else slice(-args.max_length, None)
        ids, labels = [row[cut] for row in ids], [row[cut] for row in labels]
    keep = [i for i, row in enumerate(labels) if any(token != encode.IGNORE for token in row)]
    if rows and not keep:
        raise AlignError("no row has an answer within max_length", "raise `training.max_length`")
    return {
        "input_ids": [ids[i] for i in keep],
        "labels": [labels[i] for i in keep],
        LENGTH: [len(ids[i]) for i in keep],
        GROUP: [groups[i] if groups else 0 for i in keep],
    }


def preference(rows: Sequence[Record], tokenizer: PreTrainedTokenizerBase, args: Any) -> Columns:
    """`prompt_ids`, `chosen_ids` and `rejected_ids`; the collator cuts to `max_length`.

    Raises:
        AlignError: every prompt alone fills `max_length`.
    """
    columns: Columns = dict(encode.for_preference(rows, tokenizer))
    limit = args.max_length if args.truncation_mode == "keep_start" else None
    keep = [i for i, prompt in enumerate(columns["prompt_ids"]) if limit is None or len(prompt) < limit]
    if not keep:
        raise AlignError("every prompt alone fills max_length", "raise `training.max_length`")
    columns = {name: [values[i] for i in keep] for name, values in columns.items()}
    longest = zip(columns["prompt_ids"], columns["chosen_ids"], columns["rejected_ids"], strict=True)
    columns[LENGTH] = [len(p) + max(len(c), len(r)) for p, c, r in longest]
    columns[GROUP] = [0] * len(keep)
    return columns


def unpaired(rows: Sequence[Record], tokenizer: PreTrainedTokenizerBase, args: Any) -> Columns:
    """`prompt_ids`, `completion_ids` and `label` of each answer: first those chosen of all pairs, then those rejected;
    the collator cuts to `max_length`.

    Raises:
        AlignError: every prompt alone fills `max_length`.
    """
    found = encode.for_preference(rows, tokenizer)
    limit = args.max_length
    keep = [i for i, prompt in enumerate(found["prompt_ids"]) if limit is None or len(prompt) < limit]
    if not keep:
        raise AlignError("every prompt alone fills max_length", "raise `training.max_length`")
    prompts = [found["prompt_ids"][i] for i in keep] * 2
    answers = [found[name][i] for name in _SIDES for i in keep]
    return {
        "prompt_ids": prompts,
        "completion_ids": answers,
        "label": [True] * len(keep) + [False] * len(keep),
        LENGTH: [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)],
        GROUP: [0] * len(answers),
    }


def reward(rows: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> Columns:
    """`chosen_ids` and `rejected_ids` of each pair, prompt included, and `margin` where rows have one."""
    found = encode.for_preference(rows, tokenizer)
    sides = {name: [p + a for p, a in zip(found["prompt_ids"], found[name], strict=True)] for name in _SIDES}
    columns: Columns = dict(sides)
    if any("margin" in row for row in rows):
        columns["margin"] = [row.get("margin", 0.0) for row in rows]
    columns[LENGTH] = [max(len(a), len(b)) for a, b in zip(*sides.values(), strict=True)]
    columns[GROUP] = [0] * len(rows)
    return columns
