"""The order in which rows are trained on: the same for any number of processes, with an exact share of replay.

transformers groups by length within each process's batch, so the order of its data depends on how many processes
there are. Here an epoch is a list of GLOBAL batches; processes take their slices of each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object

Strategy = Literal["group_by_length", "random", "sequential"]
STRATEGIES = ("group_by_length", "random", "sequential")
WINDOW = 50  # batches among which rows are sorted by length: long enough to save padding, short enough to stay random


def epoch(lengths: Sequence[int], groups: Sequence[int], batch: int, *, strategy: Strategy, seed: int) -> list[int]:
    """One epoch as row indices, a multiple of `batch` long; row i of global batch b stands at b * batch + i.

    Args:
        lengths: tokens of each row.
        groups: 0 for a row of the task, 1 for a replayed one. Every batch holds their overall share, within one row.
        batch: rows of one optimizer update over all processes and accumulation steps.
        strategy: as `train_sampling_strategy` of transformers; `sequential` keeps the order of the task's rows, with
            replayed ones dealt out among them.
        seed: of this epoch.

    Every row comes at least once; the last batch is filled up from the start of another order.
    """
    rng = None if strategy == "sequential" else random.Random(seed)
    batches = -(-len(lengths) // batch)
    replayed = [i for i, group in enumerate(groups) if group]
    task = [i for i, group in enumerate(groups) if not group]
    share = round(batches * batch * len(replayed) / len(lengths))
    streams = (_stream(replayed, share, rng), _stream(task, batches * batch - share, rng))
    counts = [(b + 1) * share // batches - b * share // batches for b in range(batches)]
    order: list[list[int]] = []
    for start in range(0, batches, WINDOW):
        order += _window(streams, counts[start : start + WINDOW], batch, lengths, strategy, rng)
    if strategy == "group_by_length":
        longest = max(range(batches), key=lambda b: max(lengths[i] for i in order[b]))
        order[0], order[longest] = order[longest], order[0]  # out of memory shows at the first step, not the last
    return [i for rows in order for i in rows]


def _stream(rows: list[int], n: int, rng: random.Random | None) -> Iterator[int]:
    """`n` rows: whole rounds, shuffled if `rng` is given, then the start of one more."""
    taken: list[int] = []
    while rows and len(taken) < n:
        round_ = list(rows)
        if rng is not None:
            rng.shuffle(round_)
        taken += round_
    return iter(taken[:n])


def _window(
    streams: tuple[Iterator[int], Iterator[int]],
    counts: list[int],
    batch: int,
    lengths: Sequence[int],
    strategy: Strategy,
    rng: random.Random | None,
) -> list[list[int]]:
    replayed = [next(streams[0]) for _ in range(sum(counts))]
    task = [next(streams[1]) for _ in range(batch * len(counts) - sum(counts))]
    if strategy == "group_by_length":
        replayed.sort(key=lambda i: lengths[i])
        task.sort(key=lambda i: lengths[i])
    out = []
    for count in counts:
        rows = task[: batch - count] + replayed[:count]
        del replayed[:count], task[: batch - count]
        if strategy == "group_by_length":
            rows.sort(key=lambda i: lengths[i])
        elif rng is not None:
            rng.shuffle(rows)
        out.append(rows)
    if rng is not None:
        rng.shuffle(out)
    return out


class RowOrder:
    """A sampler of a torch DataLoader that gives `epoch(...)`, another order for each epoch.

    transformers calls `set_epoch`, also when it resumes.
    """

    def __init__(
        self, lengths: Sequence[int], groups: Sequence[int], batch: int, strategy: Strategy, seed: int
    ) -> None:
        self.lengths, self.groups, self.batch = list(lengths), list(groups), batch
        self.strategy, self.seed, self.epoch = strategy, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch) * self.batch

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows(self.epoch))

    def rows(self, number: int) -> list[int]:
        """The row indices of epoch `number`."""
        seed = self.seed * 1_000_003 + number
        return epoch(self.lengths, self.groups, self.batch, strategy=self.strategy, seed=seed)

    def used(self, steps: int) -> set[int]:
        """The rows that the first `steps` updates see; the first epoch has them all."""
        return set(self.rows(0)[: steps * self.batch])


GROUP = "align_group"  # column: 0 for a row of the task, 1 for a replayed one
LENGTH = "align_length"  # column: tokens of the row
