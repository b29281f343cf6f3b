"""KL(base || policy) on the prompts of the task, over the whole vocabulary, from one pass of each.

Along answers that the base samples, the KL of its next-token distributions adds up to the KL between the two models'
distributions of answers (the chain rule), which RL's Razor (2025, arXiv 2509.04259) finds to foretell forgetting.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.forgetting import decoder
from align.forgetting.battery.likelihoods import nodes_on
from align.forgetting.battery.tree import packed
from align.forgetting.bench import LOGIT_BUDGET, Bench, batches, padded
from align.forgetting.distances import KlEstimate, TaskKl, estimate
from align.policy import generation
from align.policy.divergence import forward_kl

PROMPTS = 32
ANSWER_TOKENS = 32  # of an answer, its first
LONGEST = 2048  # tokens of a prompt; longer ones would cost more than all others together
DRAWN = 4  # rows for each prompt wanted: some are of the same prompt, or too long

Base = Callable[[], AbstractContextManager[Bench]]
"""A way to the base: within, it is on the bench that it gives."""


@dataclass(frozen=True)
class Asked:
    """Prompts of the task as token ids, and the data's answers to them, of which a row may have none."""

    prompts: list[list[int]]
    answers: list[list[int]]


def choose(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, context: int | None, seed: int) -> Asked:
    """Up to PROMPTS different prompts, drawn by the seed, each with the answer that training makes likelier.

    Args:
        rows: canonical rows: conversations, of which the last answer counts, pairs, single answers, prompts, texts.
        context: positions of the model; None without a limit.
    """
    order = random.Random(seed).sample(range(len(rows)), min(len(rows), DRAWN * PROMPTS))
    values = [_answered(rows[i]) for i in order]
    longest = min(LONGEST, context - ANSWER_TOKENS if context else LONGEST)
    asked = Asked([], [])
    known = set[tuple[int, ...]]()
    for row in encode.encoded(values, TextTokenizer.of(tokenizer), "last"):
        prompt, answer = row.ids[: row.first], row.ids[row.first : row.last][:ANSWER_TOKENS]
        key = tuple(prompt or answer)
        if key and len(prompt) <= longest and key not in known and len(known) < PROMPTS:
            known.add(key)
            asked.prompts.append(prompt)
            asked.answers.append(answer)
    return asked


def _answered(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the answer that it teaches: the better one of a pair, none where the only one is undesirable."""
    if "chosen" in row:
        return {**row, "completion": row["chosen"]}
    if row.get("label") is False:
        return {key: value for key, value in row.items() if key != "completion"}
    return row


def measure(policy: Bench, base: Base, asked: Asked, prompts: str, seed: int) -> TaskKl:
    """The KL along the base's own answers, and along the data's.

    Args:
        prompts: what the prompts are, for the record.
        seed: of the sampled answers.
    """
    was_training = policy.model.training
    policy.model.eval()
    with torch.inference_mode():
        with_prompt = [prompt for prompt in asked.prompts if prompt]
        with base() as bench:
            own = sample(bench, with_prompt, ANSWER_TOKENS, seed)
        pairs = [(prompt, answer) for prompt, answer in zip(asked.prompts, asked.answers, strict=True) if answer]
        # in one go, since both answers to a prompt share the pass over it
        both = along(policy, base, [*zip(with_prompt, own, strict=True), *pairs])
        found = TaskKl(
            prompts=prompts,
            own_answers=_estimate(both[: len(own)]),
            data_answers=_estimate(both[len(own) :]),
            answer_tokens=ANSWER_TOKENS,
        )
    policy.model.train(was_training)
    return found


def _estimate(found: list[tuple[float, int]]) -> KlEstimate | None:
    return estimate([one for one in found if one[1]]) if found else None


def along(policy: Bench, base: Base, rows: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
    """KL(base || policy) summed over the tokens of each answer, and how many of them are predicted.

    Args:
        rows: token ids of a prompt, which may be empty, and of an answer to it; the very first token is not predicted.
    """
    if decoder.masked(policy.model, max((len(prompt) + len(answer) for prompt, answer in rows), default=0)):
        return _over_trees(policy, base, rows)
    ids = [prompt + answer for prompt, answer in rows]
    starts = [max(len(prompt) - 1, 0) for prompt, _ in rows]  # a token is predicted one position before it
    counts = [len(row) - 1 - start for row, start in zip(ids, starts, strict=True)]
    out = [(0.0, 0)] * len(rows)
    for batch in batches(policy, ids, starts):
        tokens, mask = padded(policy, [ids[i] for i in batch])
        where = [(k, starts[i] + t) for k, i in enumerate(batch) for t in range(counts[i])]
        row, position = torch.tensor(where, dtype=torch.long, device=tokens.device).reshape(-1, 2).unbind(1)
        first = min(starts[i] for i in batch)
        with base() as bench:
            own = bench.logits(tokens, mask, first)[row, position - first]
        now = policy.logits(tokens, mask, first)[row, position - first]
        sums = torch.split(forward_kl(own, now), [counts[i] for i in batch])
        for i, values in zip(batch, sums, strict=True):
            out[i] = (float(values.sum()), counts[i])
    return out


def _over_trees(policy: Bench, base: Base, rows: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
    """The same without padding, and with one pass over a prompt that several rows have."""
    out = [(0.0, 0)] * len(rows)
    parts = [[(prompt + answer, max(len(prompt), 1))] for prompt, answer in rows]
    vocabulary = policy.model.config.get_text_config().vocab_size
    for tree, places in packed(parts, nodes_on(policy.device), LOGIT_BUDGET // vocabulary):
        if not tree.told:
            continue
        with torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=policy.autocast):
            with base() as bench:
                own = tree.logits(bench.model, policy.device)
            now = tree.logits(policy.model, policy.device)
        values = forward_kl(own, now).tolist()
        for place, edges in zip(places, tree.edges, strict=True):
            out[place] = (math.fsum(values[at] for at, _ in edges), len(edges))
    return out


def sample(bench: Bench, prompts: Sequence[list[int]], tokens: int, seed: int) -> list[list[int]]:
    """Answers drawn from the model's whole distribution, each with the end that it came to.

    The same for the same model, prompts and seed; the random state of the process is left as it was.
    """
    out: list[list[int]] = [[] for _ in prompts]
    stop = generation.ends(bench.model, bench.tokenizer)
    drawn = generation.plain(stop, bench.tokenizer.pad_token_id, tokens, temperature=1.0)
    devices = [bench.device] if bench.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for batch in batches(bench, prompts, [len(row) for row in prompts], extra=tokens):
            ids, mask = padded(bench, [prompts[i] for i in batch], left=True)
            with (
                generation.settings(bench.model, drawn),
                torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=bench.autocast),
            ):
                made = bench.model.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
            for k, i in enumerate(batch):
                said = generation.cut(made[k], stop)
                out[i] = [*said, *made[k][len(said) : len(said) + 1]]
    return out
