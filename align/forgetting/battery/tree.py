"""Many rows of tokens in one pass without a token twice: what rows begin with together is one path of a tree.

The nodes of a tree stand in one row of the model's input, each at the position that it has in its own row, and a mask
lets each see the nodes on its way to the root and nothing else (as in SpecInfer, Miao et al. 2023, arXiv 2305.09781).
So there is no padding either. Only a model that does as the mask says can be asked so, `decoder.masked`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from align.policy.unwrapped import unwrapped

Row = tuple[Sequence[int], int]
"""Tokens, and the first that counts, at least 1."""


@dataclass
class Tree:
    """Rows of tokens.

    Attributes:
        tokens: of each node.
        parents: the node before it, -1 of a first one; a parent stands before its children.
        depths: how many nodes stand before it on its way.
        told: the nodes whose next token is asked for, with their places in the order in which they came.
        edges: of each row, a place in `told` and the token whose probability is wanted, for each of its tokens that
            count.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    told: dict[int, int] = field(default_factory=dict)
    edges: list[list[tuple[int, int]]] = field(default_factory=list)
    known: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, row: Sequence[int], first: int) -> None:
        """A row whose tokens from `first` on count, at least 1. Its last one predicts nothing and is no node."""
        path, parent = [], -1
        for depth, token in enumerate(row[:-1]):
            node = self.known.setdefault((parent, token), len(self.tokens))
            if node == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(parent)
                self.depths.append(depth)
            path.append(node)
            parent = node
        before = [self.told.setdefault(path[at - 1], len(self.told)) for at in range(first, len(row))]
        self.edges.append(list(zip(before, row[first:], strict=True)))

    def cut(self, nodes: int, told: int, rows: int) -> None:
        """Take the rows back that came last, so that this many of each are left."""
        del self.tokens[nodes:], self.parents[nodes:], self.depths[nodes:], self.edges[rows:]
        for index, left in ((self.known, nodes), (self.told, told)):
            while len(index) > left:
                index.popitem()

    def visible(self) -> torch.Tensor:
        """Whether a node sees another: (nodes, nodes)."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen

    def scores(self, model: Any, device: torch.device, cache: Any = None, before: int = 0) -> list[float]:
        """The log-probability of each row: the sum over its tokens that count.

        Args:
            cache, before: as for `logits`.
        """
        if not self.told:
            return [0.0] * len(self.edges)
        logits = self.logits(model, device, cache, before)
        flat = [edge for edges in self.edges for edge in edges]
        place, token = torch.tensor(flat, device=device).unbind(1)
        each = iter(logits.float().log_softmax(-1)[place, token].tolist())
        return [sum(next(each) for _ in edges) for edges in self.edges]

    def logits(self, model: Any, device: torch.device, cache: Any = None, before: int = 0) -> torch.Tensor:
        """Those of what follows the nodes in `told`, at least one, in their order: (places, vocabulary).

        Args:
            cache: of the tokens that stand before all rows, which is written to.
            before: how many these are.
        """
        seen = torch.cat([torch.ones(len(self), before, dtype=torch.bool), self.visible()], 1).to(device)
        mask = seen if unwrapped(model).config._attn_implementation == "sdpa" else _added(seen)
        found: torch.Tensor = model(
            input_ids=torch.tensor([self.tokens], device=device),
            attention_mask=mask[None, None],
            position_ids=torch.tensor([self.depths], device=device) + before,
            logits_to_keep=torch.tensor(list(self.told), device=device),
            use_cache=cache is not None,
            **({} if cache is None else {"past_key_values": cache}),
        ).logits[0]
        return found


def packed(parts: Sequence[Sequence[Row]], nodes: int, told: int) -> list[tuple[Tree, list[int]]]:
    """Trees, each of some of the parts, with their places. Neighbours in the order of their tokens begin with the most
    together.

    Args:
        parts: rows that stand together, at least one each.
        nodes, told: that a tree of several parts has at most.
    """
    found: list[tuple[Tree, list[int]]] = []
    places: list[int] = []
    tree = Tree()
    for place in sorted(range(len(parts)), key=lambda i: list(parts[i][0][0])):
        size = len(tree), len(tree.told), len(tree.edges)
        _add(tree, parts[place])
        if places and (len(tree) > nodes or len(tree.told) > told):
            tree.cut(*size)
            found.append((tree, places))
            tree, places = Tree(), []
            _add(tree, parts[place])
        places.append(place)
    return [*found, (tree, places)] if places else found


def _add(tree: Tree, part: Sequence[Row]) -> None:
    for row, first in part:
        tree.add(row, first)


def _added(seen: torch.Tensor) -> torch.Tensor:
    """A mask that is added to the scores of attention."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)
