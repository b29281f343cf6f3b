"""The answers of a rollout in minibatches of like length, each cut to its own longest: padding costs what text costs.

`train_sampling_strategy: group_by_length`, as everywhere in align; TRL's online trainers know no such thing. Which
answers share a minibatch is settled once for a rollout, so that the first update sees the very batches from which the
old log-probabilities were made, and its ratio is exactly 1; the order of minibatches is drawn anew for each pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from trl import RLOOTrainer as Trainer

    from align.rl.critic import Passes
else:
    Trainer = object

Batch = dict[str, Any]

NUMBER = "minibatch"  # of an answer, or its part of one, in what TRL makes of a rollout
MEANS = ("loss_tokens",)  # figures without dimensions that are of a minibatch; others are of the whole rollout


class Minibatches(Trainer):
    """Mixed in before a TRL trainer that samples answers; each method calls `super()`.

    Attributes:
        parts: that each minibatch is cut into, where a process has no memory for a whole one; they are accumulated.
    """

    parts: int = 1
    args: Any
    model: Any
    passes: Passes
    _step: int
    _buffered_inputs: list[Batch] | None

    @property
    def grouped(self) -> bool:
        """Whether minibatches hold answers of like length."""
        return bool(self.args.train_sampling_strategy == "group_by_length")

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, batch_size: Any = None, **rest: Any
    ) -> Any:
        """A whole rollout, which TRL passes on with a `batch_size` and without a gradient, minibatch by minibatch."""
        inner: Any = super()._get_per_token_logps_and_entropies
        if batch_size is None or not self.grouped or rest.get("compute_entropy") or rest.get("compute_aux_loss"):
            return inner(model, input_ids, attention_mask, logits_to_keep, batch_size, **rest)
        order = by_length(
            attention_mask[:, :-logits_to_keep], attention_mask[:, -logits_to_keep:], batch_size * self.parts
        )
        found, values = [], []
        for rows in torch.split(order, batch_size):
            ids, mask, kept = cut(input_ids[rows], attention_mask[rows], logits_to_keep)
            missing = (0, logits_to_keep - kept)
            found.append(pad(inner(model, ids, mask, kept, **rest)[0], missing))
            if self.passes.wanted:
                values.append(pad(self.passes.wanted.pop()[:, -kept:], missing))
        back = order.argsort()
        if self.passes.wanted is not None and values:
            self.passes.wanted.append(torch.cat(values)[back])
        return torch.cat(found)[back], None, None

    def _generate_and_score_completions(self, inputs: list[Any]) -> Batch:
        out: Batch = super()._generate_and_score_completions(inputs)
        size = self.args.per_device_train_batch_size
        order = by_length(out["prompt_mask"], out["completion_mask"], size * self.parts)
        return out | {NUMBER: order.argsort() // size}

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        batch = super()._prepare_inputs(generation_batch)
        if not self.grouped or not self.model.training:
            return batch
        if self._step % self.args.steps_per_generation == 0:  # a pass over the rollout begins
            assert self._buffered_inputs is not None
            whole = self.args.steps_per_generation // self.parts
            drawn = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self._step // self.parts)
            order = torch.randperm(whole, generator=drawn).tolist()
            if self._step == 0:  # out of memory shows at the first update
                order.sort(key=lambda number: number < whole - 1)
            parts = [number * self.parts + part for number in order for part in range(self.parts)]
            self._buffered_inputs = regrouped(self._buffered_inputs, parts)
            batch = self._buffered_inputs[0]
        return trimmed(batch)


def by_length(prompts: torch.Tensor, answers: torch.Tensor, size: int) -> torch.Tensor:
    """The answers of a rollout in the order in which minibatches of `size` waste least: by the length of the answer, of
    the prompt, or of both.

    Args:
        prompts, answers: masks, (answers, tokens).

    Returns:
        (answers,), from the shortest to the longest.
    """
    before, after = prompts.sum(1), answers.sum(1)

    def tokens(order: torch.Tensor) -> int:
        return sum(int(before[rows].max() + after[rows].max()) * len(rows) for rows in torch.split(order, size))

    return min((length.argsort(stable=True) for length in (after, before, before + after)), key=tokens)


def bounds(prompts: torch.Tensor, answers: torch.Tensor) -> tuple[int, int]:
    """How many columns of prompts, padded on the left, can go, and how many of answers, padded on the right, stay."""
    lead = int(prompts.any(0).int().argmax()) if prompts.any() else 0
    kept = int((answers.any(0).int() * torch.arange(1, answers.size(1) + 1, device=answers.device)).max())
    return lead, max(1, kept)


def cut(ids: torch.Tensor, mask: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Rows of a prompt and `keep` columns of its answer, without the columns in which there is nothing but padding;
    and how many the answer has then."""
    lead, kept = bounds(mask[:, :-keep], mask[:, -keep:])
    stay = slice(lead, mask.size(1) - keep + kept)
    return ids[:, stay], mask[:, stay], kept


def regrouped(batches: Sequence[Batch], order: Sequence[int]) -> list[Batch]:
    """The answers of a rollout, cut into batches in any way, in the minibatches that they belong to, in that order.

    A figure of the rollout as a whole, a tensor without dimensions, goes into every one.
    """
    number = torch.cat([batch[NUMBER] for batch in batches])
    rows = [(number == wanted).nonzero().squeeze(1) for wanted in order]

    def chosen(name: str, at: torch.Tensor) -> Any:
        first = batches[0][name]
        if not isinstance(first, torch.Tensor) or first.ndim == 0:
            return first
        return torch.cat([batch[name] for batch in batches])[at]

    return [{name: chosen(name, at) for name in batches[0]} for at in rows]


def divided(batches: Sequence[Batch], times: Fraction) -> list[Batch]:
    """The minibatches of a rollout as `times` as many: each cut into parts of like size, or those joined that follow
    each other."""
    joined, parts = times.denominator, times.numerator
    whole = [_joined(batches[at : at + joined]) for at in range(0, len(batches), joined)]
    return [part for batch in whole for part in _parts(batch, parts)]


def _joined(batches: Sequence[Batch]) -> Batch:
    first, count = batches[0], len(batches)
    found = {name: torch.cat([one[name] for one in batches]) if first[name].ndim else first[name] for name in first}
    found |= {name: found[name] * count for name in MEANS if name in found}
    return found | ({NUMBER: found[NUMBER] // count} if NUMBER in found else {})


def _parts(batch: Batch, parts: int) -> Iterator[Batch]:
    size = next(len(tensor) for tensor in batch.values() if tensor.ndim) // parts
    for part in range(parts):
        rows = slice(part * size, (part + 1) * size)
        cut = {name: tensor[rows] if tensor.ndim else tensor for name, tensor in batch.items()}
        cut |= {name: cut[name] / parts for name in MEANS if name in cut}
        yield cut | ({NUMBER: cut[NUMBER] * parts + part} if NUMBER in cut else {})


def trimmed(batch: Batch) -> Batch:
    """A minibatch without the columns in which there is nothing but padding."""
    lead, kept = bounds(batch["prompt_mask"], batch["completion_mask"])
    width = batch["completion_mask"].size(1)

    def narrow(name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim != 2:
            return value
        if name.startswith("prompt_"):
            return value[:, lead:]
        return value[:, :kept] if value.size(1) == width else value

    return {name: narrow(name, value) for name, value in batch.items()}
