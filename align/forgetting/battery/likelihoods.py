"""How likely a model finds each of several answers to a question.

The questions of a group begin alike, with solved examples or a chat template's system turn: that is computed once for
the group. What questions and answers begin with together after it is one path of a tree. For a model that no tree can
be put to, each question is computed once for its answers, and each answer goes on from the cache of its question.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from align.forgetting import decoder
from align.forgetting.battery.tree import Tree, packed
from align.forgetting.share import Share
from align.policy.unwrapped import unwrapped

TOKEN_BUDGET = 2**14  # tokens of one batch, those that are kept in its cache and padding included
LOGIT_BUDGET = 2**26  # elements of its logits: 256 MiB in float32
MOST = 64  # questions of a batch
FEW = 8  # rows that are worth a pass of their own, whatever padding another pass would save
SLACK = 1.25  # the longest row of a pass over the shortest that joins it
NODES = {"cpu": 256}  # tokens of a tree: of more, attention costs a CPU more than it saves
NODES_ELSEWHERE = 1024  # of fewer, a GPU has too little to do


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


@dataclass(frozen=True)
class Batch:
    """Questions that are computed together.

    Attributes:
        group: the group that they are of.
        prefix: how many tokens all questions of the group begin with, and have more.
        places: their places in the group.
    """

    group: int
    prefix: int
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Planted(Batch):
    """The same as one tree."""

    tree: Tree = field(default_factory=Tree)


def log_likelihoods(
    model: torch.nn.Module, groups: Sequence[Sequence[Asked]], *, pad: int, autocast: bool, share: Share | None = None
) -> list[list[list[float]]]:
    """The log-probability in nats of every answer, the sum over its tokens, for each question of each group.

    Args:
        model: a causal language model of transformers or PEFT, in evaluation mode.
        groups: questions that are likely to begin alike.
        pad: any token id.
        autocast: compute in bfloat16 as training does.
        share: the part of this process; all processes get all figures.
    """
    share = share or Share()
    longest = max((len(one.shared) + len(rest) for group in groups for one in group for rest in one.rest), default=0)
    scorer = _Scorer(model, pad, unwrapped(model).config.get_text_config().vocab_size, longest)
    batches: Sequence[Batch] = plan(groups, scorer.vocabulary)
    if decoder.masked(model, longest):
        batches = planted(groups, scorer.vocabulary, nodes_on(scorer.device))
    with torch.autocast(scorer.device.type, dtype=torch.bfloat16, enabled=autocast):
        own = {number: scorer.scored(groups[batch.group], batch) for number, batch in share.mine(batches)}
    found: list[list[list[float]]] = [[[] for _ in group] for group in groups]
    for number, scores in share.together(own).items():
        for place, sums in zip(batches[number].places, scores, strict=True):
            found[batches[number].group][place] = sums
    return found


def plan(groups: Sequence[Sequence[Asked]], vocabulary: int) -> list[Batch]:
    """The batches of all groups, in each of them the longest questions first."""
    found: list[Batch] = []
    for number, group in enumerate(groups):
        begun = prefix([asked.shared for asked in group])
        order = sorted(range(len(group)), key=lambda i: len(group[i].shared))
        while order:
            places: list[int] = []
            answers, longest = 0, 0
            while order and len(places) < MOST:
                one = group[order[-1]]
                wide = len(group[places[0]].shared) if places else len(one.shared)
                if len(places) >= FEW and wide - begun > SLACK * (len(one.shared) - begun):
                    break
                answers, longest = answers + len(one.rest), max(longest, *map(len, one.rest))
                tokens, logits = answers * (wide + longest), answers * longest * vocabulary
                if places and (tokens > TOKEN_BUDGET or logits > LOGIT_BUDGET):
                    break
                places.append(order.pop())
            found.append(Batch(number, begun, tuple(places)))
    return found


def nodes_on(device: torch.device) -> int:
    """How many tokens a tree has at most."""
    return NODES.get(device.type, NODES_ELSEWHERE)


def planted(groups: Sequence[Sequence[Asked]], vocabulary: int, nodes: int) -> list[Planted]:
    """The trees of all groups.

    Args:
        nodes: that a tree of several questions has at most.
    """
    found = []
    for number, group in enumerate(groups):
        begun = prefix([asked.shared for asked in group])
        parts = [
            [
                ([*asked.shared[begun:], *rest], len(asked.shared) - begun + first)
                for rest, first in zip(asked.rest, asked.first, strict=True)
            ]
            for asked in group
        ]
        trees = packed(parts, nodes, LOGIT_BUDGET // vocabulary)
        found += [Planted(number, begun, tuple(places), tree) for tree, places in trees]
    return found


def prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens the rows begin with together, so that each has at least one more."""
    if len(rows) < 2:
        return 0
    low, high = min(map(list, rows)), max(map(list, rows))
    alike = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return min(alike, min(map(len, rows)) - 1)


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """The places of rows of similar length together, the longest first; rows of length 0 are left out."""
    order = sorted((i for i, length in enumerate(lengths) if length > 0), key=lambda i: -lengths[i])
    found: list[list[int]] = []
    for place in order:
        if found and (len(found[-1]) < FEW or lengths[found[-1][0]] <= SLACK * lengths[place]):
            found[-1].append(place)
        else:
            found.append([place])
    return found


class _Scorer:
    """A model with the cache of the beginning that was computed last."""

    def __init__(self, model: torch.nn.Module, pad: int, vocabulary: int, longest: int) -> None:
        self.model, self.pad, self.vocabulary = model, pad, vocabulary
        self.device = next(model.parameters()).device
        self.accepted = inspect.signature(unwrapped(model).forward).parameters
        prompted = bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))
        self.uncached = prompted or longest > (decoder.window(model) or longest)
        self.group = -1
        self.beginning: Any = None

    def scored(self, group: Sequence[Asked], batch: Batch) -> list[list[float]]:
        """The log-probability of every answer to the questions of a batch."""
        asked = [group[place] for place in batch.places]
        if isinstance(batch, Planted):
            cache = self._begun(group[0].shared[: batch.prefix], batch, 1)
            sums = iter(batch.tree.scores(self.model, self.device, cache, batch.prefix))
            return [[next(sums) for _ in one.rest] for one in asked]
        if self.uncached:
            return self._whole(asked)
        questions = _left([one.shared[batch.prefix :] for one in asked], self.pad)
        rest = [tokens for one in asked for tokens in one.rest]
        answers, written = _right(rest, self.pad)
        counted = written.clone()
        for row, first in enumerate(first for one in asked for first in one.first):
            counted[row, :first] = 0
        ids, mask, answers, written, counted = (x.to(self.device) for x in (*questions, answers, written, counted))
        mask = torch.cat([mask.new_ones(len(asked), batch.prefix), mask], 1)
        places = mask.cumsum(1) - 1
        cache = self._begun(group[0].shared[: batch.prefix], batch, len(asked))
        last = {"logits_to_keep": 1} if "logits_to_keep" in self.accepted else {}
        asking = self._pass(ids, mask, places[:, batch.prefix :], past_key_values=cache, **last)
        chosen = torch.tensor([row for row, one in enumerate(asked) for _ in one.rest], device=self.device)
        summed = _of(asking.logits[:, -1].float().log_softmax(-1)[chosen], answers[:, 0]) * counted[:, 0]
        pieces = alike([len(tokens) - 1 for tokens in rest])
        for number, rows in enumerate(pieces):
            width = len(rest[rows[0]])
            cache = asking.past_key_values
            if number < len(pieces) - 1:  # the last piece may have it for good
                cache = copy.deepcopy(cache)
            here = torch.tensor(rows, device=self.device)
            cache.batch_select_indices(chosen[here])
            given, read, told = answers[here, :width], written[here, : width - 1], counted[here, 1:width].bool()
            seen = torch.cat([mask[chosen[here]], read], 1)
            at = places[chosen[here], -1:] + torch.arange(1, width, device=self.device)
            logits = self._pass(given[:, :-1], seen, at, past_key_values=cache).logits
            of_tokens = torch.zeros(told.shape, device=self.device)  # padding costs no softmax
            of_tokens[told] = _of(logits[told].float().log_softmax(-1), given[:, 1:][told])
            summed[here] += of_tokens.sum(1)
        each = iter(summed.tolist())
        return [[next(each) for _ in one.rest] for one in asked]

    def _whole(self, asked: Sequence[Asked]) -> list[list[float]]:
        """The same of a model with a learnt prompt, which PEFT puts before every pass, so that a cache would get it
        twice; and where a window is shorter than a row, so that padding inside one would push what is before it out: a
        row for each answer, and no cache."""
        rows = [one.shared + tokens for one in asked for tokens in one.rest]
        starts = [len(one.shared) + first for one in asked for first in one.first]
        ids, mask = (x.to(self.device) for x in _right(rows, self.pad))
        counted = mask[:, 1:].clone()
        for row, start in enumerate(starts):
            counted[row, : start - 1] = 0
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        told, of_tokens = counted.bool(), torch.zeros(counted.shape, device=self.device)
        predicted = logits[:, logits.shape[1] - ids.shape[1] :][:, :-1]
        of_tokens[told] = _of(predicted[told].float().log_softmax(-1), ids[:, 1:][told])
        each = iter(of_tokens.sum(1).tolist())
        return [[next(each) for _ in one.rest] for one in asked]

    def _begun(self, prefix: Sequence[int], batch: Batch, rows: int) -> Any:
        """The cache of a group's beginning for so many rows; None where the questions begin differently."""
        if not prefix:
            return None
        if self.group != batch.group:
            ids = torch.tensor([prefix], device=self.device)
            last = {"logits_to_keep": 1} if "logits_to_keep" in self.accepted else {}
            places = torch.arange(len(prefix), device=self.device).unsqueeze(0)
            self.beginning = self._pass(ids, torch.ones_like(ids), places, **last).past_key_values
            self.group = batch.group
        cache = copy.deepcopy(self.beginning)
        cache.batch_repeat_interleave(rows)
        return cache

    def _pass(self, ids: torch.Tensor, seen: torch.Tensor, at: torch.Tensor, **given: Any) -> Any:
        positions: Mapping[str, torch.Tensor] = {}
        if "position_ids" in self.accepted:
            positions = {"position_ids": at.clamp(min=0)}
        return self.model(input_ids=ids, attention_mask=seen, use_cache=True, **positions, **given)


def _of(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The log-probabilities (rows,) of tokens (rows,) out of those of the vocabulary, (rows, vocabulary)."""
    return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of rows, padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def _right(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of rows, padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
