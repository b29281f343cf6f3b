"""Greedy answers as `generate` gives them, without what it spends on answers that have ended and on what prompts begin
with together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

WORTH = 0.85  # rows left of those in the cache from which on the others are taken out of it, which copies it


def answers(
    model: Any, begun: Sequence[int], ids: torch.Tensor, mask: torch.Tensor, tokens: int, stop: Collection[int]
) -> list[list[int]]:
    """The likeliest token again and again, without the one that ends an answer.

    Args:
        model: in evaluation mode; `decoder.ordinary`.
        begun: tokens that all prompts begin with, not in `ids`.
        ids, mask: of the rest of each prompt, (rows, width), padded on the left, at least one token each.
        tokens: the most of an answer.
        stop: tokens that end one.
    """
    rows = len(ids)
    mask = torch.cat([mask.new_ones(rows, len(begun)), mask], 1)
    at = (mask.cumsum(1) - 1).clamp(min=0)[:, len(begun) :]
    cache = _begun(model, begun, rows, ids.device)
    out: list[list[int]] = [[] for _ in range(rows)]
    here = list(range(rows))  # the rows in the cache
    going = set(here)
    for _ in range(tokens):
        made = model(
            input_ids=ids, attention_mask=mask, position_ids=at, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache = made.past_key_values
        ids = made.logits[:, -1].argmax(-1, keepdim=True)
        for row, (token,) in zip(here, ids.tolist(), strict=True):
            if row in going and token not in stop:
                out[row].append(token)
            else:
                going.discard(row)
        if not going:
            break
        at = at[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(here), 1)], 1)
        if len(going) <= WORTH * len(here):
            left = torch.tensor([k for k, row in enumerate(here) if row in going], device=ids.device)
            here = [row for row in here if row in going]
            ids, mask, at = ids[left], mask[left], at[left]
            cache.batch_select_indices(left)
    return out


def _begun(model: Any, begun: Sequence[int], rows: int, device: torch.device) -> Any:
    """The cache of what all begin with, for each row."""
    if not begun:
        return None
    cache = model(input_ids=torch.tensor([begun], device=device), use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(rows)
    return cache
