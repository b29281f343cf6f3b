"""Canonical rows as the token columns that the trainers take, with the columns that their order is made from.

Each function yields a table in batches, so that no more than one of them is in memory as Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from align.data import encode
from align.data.encode import Pair, Turns
from align.data.order import GROUP, LENGTH
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = dict[str, Any]
Columns = dict[str, list[Any]]
_BATCH: Final = 1000
_FULL: Final = "every prompt alone fills max_length"
_RAISE: Final = "raise `training.max_length`"


def language_modeling(
    rows: Sequence[Record],
    groups: Sequence[int] | None,
    tokenizer: PreTrainedTokenizerBase,
    args: Any,
    *,
    completion_only: bool,
    turns: Turns = "all",
) -> Iterator[Columns]:
    """`input_ids` and `labels`, cut to `max_length` unless rows are packed afterwards.

    Args:
        completion_only: prompts are not learnt; plain text always is, whole.
        turns: which of the assistant's turns are learnt.

    Raises:
        AlignError: no row has a token left that counts.
    """
    limit = None if args.packing else args.max_length
    cut = slice(None, limit) if args.truncation_mode == "keep_start" or limit is None else slice(-limit, None)
    encoded = encode.encoded(rows, TextTokenizer.of(tokenizer), turns)
    kept = 0
    for start, batch in _batches(encoded):
        ids = [row.ids[cut] for row in batch]
        labels = [(row.labels if completion_only else row.ids)[cut] for row in batch]
        keep = [i for i, row in enumerate(labels) if any(token != encode.IGNORE for token in row)]
        kept += len(keep)
        yield {
            "input_ids": [ids[i] for i in keep],
            "labels": [labels[i] for i in keep],
            LENGTH: [len(ids[i]) for i in keep],
            GROUP: [groups[start + i] if groups else 0 for i in keep],
        }
    if rows and not kept:
        raise AlignError("no row has an answer within max_length", _RAISE)


def preference(rows: Sequence[Record], tokenizer: PreTrainedTokenizerBase, args: Any) -> Iterator[Columns]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids`, and `chosen_mask` and `rejected_mask`, which are 0 for what is not
    the assistant's; the collator cuts to `max_length`.

    Raises:
        AlignError: every prompt alone fills `max_length`.
    """
    limit = args.max_length if args.truncation_mode == "keep_start" else None
    kept = 0
    for _, batch in _batches(encode.pairs(rows, TextTokenizer.of(tokenizer))):
        pairs = [pair for pair in batch if _room(pair, limit)]
        kept += len(pairs)
        yield {
            "prompt_ids": [pair.chosen.ids[: pair.prompt] for pair in pairs],
            "chosen_ids": [pair.chosen.ids[pair.prompt : pair.chosen.last] for pair in pairs],
            "rejected_ids": [pair.rejected.ids[pair.prompt : pair.rejected.last] for pair in pairs],
            "chosen_mask": [pair.chosen.mask[pair.prompt : pair.chosen.last] for pair in pairs],
            "rejected_mask": [pair.rejected.mask[pair.prompt : pair.rejected.last] for pair in pairs],
            LENGTH: [max(pair.chosen.last, pair.rejected.last) for pair in pairs],
            GROUP: [0] * len(pairs),
        }
    if not kept:
        raise AlignError(_FULL, _RAISE)


def unpaired(rows: Sequence[Record], tokenizer: PreTrainedTokenizerBase, args: Any) -> Iterator[Columns]:
    """`prompt_ids`, `completion_ids`, `completion_mask` and `label` of single answers: of rows that have a label, and
    of pairs, first those chosen of all, then those rejected; the collator cuts to `max_length`.

    Raises:
        AlignError: every prompt alone fills `max_length`.
    """
    reader = TextTokenizer.of(tokenizer)
    answers = [_answer(row, name) for name in ("completion", "chosen", "rejected") for row in rows if name in row]
    kept = 0
    for start, batch in _batches(encode.encoded(answers, reader)):
        keep = [i for i, row in enumerate(batch) if args.max_length is None or row.first < args.max_length]
        kept += len(keep)
        yield {
            "prompt_ids": [batch[i].ids[: batch[i].first] for i in keep],
            "completion_ids": [batch[i].ids[batch[i].first : batch[i].last] for i in keep],
            "completion_mask": [batch[i].mask[batch[i].first : batch[i].last] for i in keep],
            "label": [bool(answers[start + i]["label"]) for i in keep],
            LENGTH: [batch[i].last for i in keep],
            GROUP: [0] * len(keep),
        }
    if not kept:
        raise AlignError(_FULL, _RAISE)


def reward(rows: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> Iterator[Columns]:
    """`chosen_ids` and `rejected_ids` of each pair, prompt included and all that the template writes after the answer,
    and `margin` where rows have one."""
    margins = any("margin" in row for row in rows)
    for start, pairs in _batches(encode.pairs(rows, TextTokenizer.of(tokenizer))):
        columns: Columns = {
            "chosen_ids": [pair.chosen.ids for pair in pairs],
            "rejected_ids": [pair.rejected.ids for pair in pairs],
        }
        if margins:
            columns["margin"] = [float(rows[start + i].get("margin", 0.0)) for i in range(len(pairs))]
        columns[LENGTH] = [max(len(pair.chosen.ids), len(pair.rejected.ids)) for pair in pairs]
        columns[GROUP] = [0] * len(pairs)
        yield columns


def together(batches: Iterator[Columns]) -> Columns:
    """A table whole, for those that are small."""
    columns: Columns = {}
    for batch in batches:
        for name, values in batch.items():
            columns.setdefault(name, []).extend(values)
    return columns


def _answer(row: Record, name: str) -> Record:
    """A single answer, with whether it is desirable."""
    kept = {key: row[key] for key in ("prompt", "tools") if key in row}
    return kept | {"completion": row[name], "label": row["label"] if name == "completion" else name == "chosen"}


def _room(pair: Pair, limit: int | None) -> bool:
    return limit is None or pair.prompt < limit


def _batches(found: Iterator[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Batches, each with the number of its first."""
    start = 0
    while batch := list(islice(found, _BATCH)):
        yield start, batch
        start += len(batch)
