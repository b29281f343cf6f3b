"""Sampled answers of a policy on the bench, the same for the same seed whatever else is drawn.

Batches are the same for any number of processes, each is sampled whole by one of them, with random numbers of its own:
so what is written is the same too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import torch

from align.forgetting.bench import Bench, batches, padded
from align.policy import generation

BATCH: Final = 64  # rows: several processes share the batches


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        tokens: the most that an answer may have.
        seed: any text; another one draws other answers.
    """

    tokens: int
    temperature: float
    top_p: float
    seed: str


@dataclass(frozen=True)
class Said:
    """An answer: its tokens without the end, and whether it came to one."""

    ids: list[int]
    ended: bool


def sample(bench: Bench, rows: Sequence[list[int]], how: Sampling, more_ends: Sequence[int] = ()) -> list[Said]:
    """An answer to each prompt, in order. A collective call where several processes share the bench.

    Args:
        rows: token ids of prompts, none of them empty.
        more_ends: tokens that end an answer besides those that do anyway.
    """
    out: dict[int, Said] = {}
    stop = [*generation.ends(bench.model, bench.tokenizer), *more_ends]
    config = generation.plain(stop, bench.tokenizer.pad_token_id, how.tokens, how.temperature, how.top_p)
    devices = [bench.device] if bench.device.type == "cuda" else []
    was_training = bench.model.training
    bench.model.eval()
    starts = [len(row) for row in rows]
    for number, batch in bench.share.mine(batches(bench, rows, starts, extra=how.tokens, most=BATCH)):
        ids, mask = padded(bench, [rows[i] for i in batch], left=True)
        with (
            torch.inference_mode(),
            torch.random.fork_rng(devices),
            generation.settings(bench.model, config),
            torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=bench.autocast),
        ):
            torch.manual_seed(_number(f"{how.seed} {number}"))
            made = bench.model.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
        for k, i in enumerate(batch):
            words = generation.cut(made[k], stop)
            out[i] = Said(words, ended=len(words) < len(made[k]))
    bench.model.train(was_training)
    found = bench.share.together(out)
    return [found[i] for i in range(len(rows))]


def _number(seed: str) -> int:
    """A seed of torch, from a text."""
    return int.from_bytes(sha256(seed.encode()).digest()[:8]) >> 1
