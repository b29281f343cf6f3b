"""Old rows from several sources: how many of each, in which order, and which of them stand beside an update. No torch.

Everything follows from the seed and the number of an update, so that the number of processes, accumulation and a
resumption are in none of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import floor
from typing import Any, TypeVar

from align.data import mixing

_Element = TypeVar("_Element")


@dataclass(frozen=True)
class Source:
    """Where replayed rows come from.

    Attributes:
        name: as a report shows it.
        weight: its share of the replayed rows is weight / sum of the weights.
        rows: canonical rows, all that it has.
    """

    name: str
    weight: float
    rows: Sequence[dict[str, Any]]


def quotas(n: int, weights: Sequence[float | Fraction]) -> list[int]:
    """`n` split by weight into whole numbers, by the largest remainders; of equal ones the first come first."""
    shares = [Fraction(weight) for weight in weights]
    exact = [share * n / sum(shares) for share in shares]
    found = [floor(one) for one in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (found[i] - exact[i], i))
    for i in by_remainder[: n - sum(found)]:
        found[i] += 1
    return found


def dealt(counts: Sequence[int]) -> list[int]:
    """Each number i as often as counts[i] says, spread evenly: the next is always the one that is furthest behind."""
    total, given, order = sum(counts), [0] * len(counts), []
    for place in range(1, total + 1):
        behind = [count * place - done * total for count, done in zip(counts, given, strict=True)]
        order.append(max(range(len(counts)), key=lambda i: (behind[i], -i)))
        given[order[-1]] += 1
    return order


def draw(sources: Sequence[Source], n: int, seed: int) -> tuple[list[dict[str, Any]], list[int]]:
    """`n` rows of all sources, each with its quota, and the number of the source of each.

    Raises:
        AlignError: a source has no rows.
    """
    counts = quotas(n, [source.weight for source in sources])
    drawn = [iter(mixing.draw(source.rows, count, seed)) for source, count in zip(sources, counts, strict=True)]
    order = dealt(counts)
    return [next(drawn[i]) for i in order], order


def counted(sources: Sequence[Source], counts: Sequence[int], task: int) -> dict[str, Any]:
    """What an outcome says of the rows that are replayed in an epoch.

    Args:
        counts: of each source.
        task: rows of the task in an epoch.
    """
    each = zip(sources, counts, strict=True)
    return {
        "replay_rows": sum(counts),
        "replay_ratio": sum(counts) / (task + sum(counts)),
        "replay_sources": [
            {"name": source.name, "weight": source.weight, "rows": len(source.rows), "replayed": count}
            for source, count in each
        ],
    }


class Beside:
    """Which rows stand beside each update of a stage whose own loss is of another kind.

    Every epoch has the exact quota of each source, spread evenly over its updates. A row comes again only after all of
    its source have come, then in a new order.

    Args:
        sizes, weights: of the sources.
        per_update: rows beside one update.
        updates: of an epoch of the task's rows.
        seed: of the stage.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], per_update: int, updates: int, seed: int
    ) -> None:
        self.sizes, self.per_update, self.updates, self.seed = list(sizes), per_update, updates, seed
        self.counts = quotas(per_update * updates, weights)
        self.order = dealt(self.counts)
        self.before = [[0] * len(self.counts)]  # of each source, before each update of an epoch
        for start in range(0, len(self.order), max(1, per_update)):
            here = self.order[start : start + per_update]
            self.before.append([done + here.count(i) for i, done in enumerate(self.before[-1])])

    def rows(self, update: int) -> list[tuple[int, int]]:
        """(source, row) of each row beside that update, which is counted from 0 over all epochs."""
        epoch, within = divmod(update, self.updates)
        start = within * self.per_update
        taken = [epoch * count + done for count, done in zip(self.counts, self.before[within], strict=True)]
        found = []
        for source in self.order[start : start + self.per_update]:
            turn, place = divmod(taken[source], self.sizes[source])
            found.append((source, shuffled(self.sizes[source], f"replay {self.seed} {source} {turn}")[place]))
            taken[source] += 1
        return found


@lru_cache(maxsize=16)
def shuffled(count: int, seed: str) -> tuple[int, ...]:
    """The numbers below `count` in random order."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return tuple(order)
