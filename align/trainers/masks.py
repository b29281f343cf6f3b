"""Batches in which parts of an answer do not count: the user's words in between, what a template writes after the end.

Rows may have masks beside their answers: lists of 1 and, for a token that does not count, 0, as long as the answer.
They are cut and padded as the token ids are. Without them the collators are TRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.utils import pad

PAIR = ("chosen_mask", "rejected_mask")  # columns of DPO's rows, in the order of a batch
ANSWER, KL_ANSWER = "completion_mask", "KL_completion_mask"  # of KTO's, and of what its collator makes of them


class PairCollator(DataCollatorForPreference):
    """TRL's collator of DPO, with `chosen_mask` and `rejected_mask`."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """`completion_mask` is (2 * pairs, tokens), the chosen answers first."""
        batch: dict[str, Any] = super().torch_call(examples)
        if PAIR[0] in examples[0]:
            masks = [_whole(example, name) for name in PAIR for example in examples]
            start = self.truncation_mode == "keep_start"
            kept = slice(None, self.max_length) if start else slice(-(self.max_length or 0), None)
            batch["completion_mask"] = _padded([mask[kept] for mask in masks], self.pad_to_multiple_of)
        return batch


class AnswerCollator(DataCollatorForUnpairedPreference):
    """TRL's collator of KTO, with `completion_mask` and, of the answers to other prompts, `KL_completion_mask`."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Both masks are (answers, tokens)."""
        batch: dict[str, Any] = super().torch_call(examples)
        for name in (ANSWER, KL_ANSWER):
            if name in examples[0]:
                masks = [_whole(example, name)[: self.max_length] for example in examples]
                batch[name] = _padded(masks, self.pad_to_multiple_of)
        return batch


def like(kind: type[Any], theirs: Any) -> Any:
    """A collator with the settings of TRL's own."""
    return kind(**{field.name: getattr(theirs, field.name) for field in fields(theirs)})


def _whole(example: dict[str, Any], name: str) -> list[int]:
    return [0] * len(example["prompt_ids"]) + list(example[name])


def _padded(masks: Sequence[list[int]], multiple: int | None) -> torch.Tensor:
    rows = [torch.tensor(mask, dtype=torch.long) for mask in masks]
    found: torch.Tensor = pad(rows, padding_value=0, padding_side="right", pad_to_multiple_of=multiple)
    return found
