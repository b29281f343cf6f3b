"""How likely a model finds each of several answers to a question; the pass over the question is shared by them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from align.policy.unwrapped import unwrapped

TOKEN_BUDGET = 2**14  # tokens of one batch, padding included
LOGIT_BUDGET = 2**26  # elements of its logits: 256 MiB in float32
MOST = 256  # questions of a batch


@dataclass(frozen=True)
class Asked:
    """A question with its answers as token ids.

    Attributes:
        shared: the tokens that all rows begin with, at least one and none of an answer.
        rest: of each answer, what follows: the end of the question, where answers are tokenised differently, and the
            answer.
        first: for each answer, where in `rest` it begins.
    """

    shared: list[int]
    rest: list[list[int]]
    first: list[int]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> Asked:
        """From the whole row of each answer, and where in it the answer begins, at least at 1."""
        common = 0
        while common < min(firsts) and len({row[common] for row in rows}) == 1:
            common += 1
        cut = max(common, 1)
        return cls(list(rows[0][:cut]), [list(row[cut:]) for row in rows], [first - cut for first in firsts])


def log_likelihoods(
    model: torch.nn.Module,
    asked: Sequence[Asked],
    *,
    pad: int,
    autocast: bool,
    passed: Callable[[int], None] = lambda _: None,
) -> list[list[float]]:
    """The log-probability in nats of every answer, the sum over its tokens, in the order of `asked`.

    Args:
        model: a causal language model of transformers or PEFT, in evaluation mode.
        pad: any token id.
        autocast: compute in bfloat16 as training does.
        passed: is told how many questions each batch had.
    """
    device = next(model.parameters()).device
    found: list[list[float]] = [[] for _ in asked]
    vocabulary = unwrapped(model).config.get_text_config().vocab_size
    for batch in _batches(asked, vocabulary):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            for i, scores in zip(batch, _scored(model, [asked[i] for i in batch], pad, device), strict=True):
                found[i] = scores
        passed(len(batch))
    return found


def _batches(asked: Sequence[Asked], vocabulary: int) -> Iterator[list[int]]:
    """Questions of similar length together."""
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].shared))
    while order:
        batch: list[int] = []
        answers, longest = 0, 0
        while order and len(batch) < MOST:
            one = asked[order[-1]]
            wide = len(asked[batch[0]].shared) if batch else len(one.shared)
            answers, longest = answers + len(one.rest), max(longest, *map(len, one.rest))
            tokens, logits = (len(batch) + 1) * wide + answers * longest, answers * longest * vocabulary
            if batch and (tokens > TOKEN_BUDGET or logits > LOGIT_BUDGET):
                break
            batch.append(order.pop())
        yield batch


def _scored(model: torch.nn.Module, asked: Sequence[Asked], pad: int, device: torch.device) -> list[list[float]]:
    """One batch: a pass over what is shared, and one over the answers that goes on from its cache."""
    accepted = inspect.signature(unwrapped(model).forward).parameters
    width = max(len(one.shared) for one in asked)
    ids = torch.full((len(asked), width), pad)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(asked):
        ids[row, width - len(one.shared) :] = torch.tensor(one.shared)
        mask[row, width - len(one.shared) :] = 1
    rows = [row for row, one in enumerate(asked) for _ in one.rest]
    rest = [tokens for one in asked for tokens in one.rest]
    starts = [first for one in asked for first in one.first]
    longest = max(map(len, rest))
    answers, counted = torch.full((len(rest), longest), pad), torch.zeros(len(rest), longest)
    written = torch.zeros_like(answers)
    for row, (tokens, first) in enumerate(zip(rest, starts, strict=True)):
        answers[row, : len(tokens)] = torch.tensor(tokens)
        written[row, : len(tokens)] = 1
        counted[row, first : len(tokens)] = 1
    ids, mask, answers, written, counted = (x.to(device) for x in (ids, mask, answers, written, counted))
    places = mask.cumsum(1) - 1

    def given(tokens: torch.Tensor, seen: torch.Tensor, at: torch.Tensor) -> dict[str, torch.Tensor]:
        positions = {"position_ids": at.clamp(min=0)} if "position_ids" in accepted else {}
        return {"input_ids": tokens, "attention_mask": seen, **positions}

    last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    asking = model(**given(ids, mask, places), use_cache=True, **last)
    chosen = torch.tensor(rows, device=device)
    log_probs = [torch.log_softmax(asking.logits[chosen, -1:].float(), -1)]
    if longest > 1:
        cache = asking.past_key_values
        cache.batch_select_indices(chosen)
        seen = torch.cat([mask[chosen], written[:, :-1]], 1)
        at = places[chosen, -1:] + torch.arange(1, longest, device=device)
        logits = model(**given(answers[:, :-1], seen, at), past_key_values=cache, use_cache=True).logits
        log_probs.append(torch.log_softmax(logits.float(), -1))
    of_tokens = torch.cat(log_probs, 1).gather(-1, answers.unsqueeze(-1)).squeeze(-1)
    sums = iter((of_tokens * counted).sum(1).tolist())
    return [[next(sums) for _ in one.rest] for one in asked]
