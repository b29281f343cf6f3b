"""The order in which rows are trained on: the same for any number of processes, with an exact share of replay.

transformers groups by length within each process's batch, so the order of its data depends on how many processes
there are. Here an epoch is a list of GLOBAL batches; processes take their slices of each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from align.data.replay import dealt, quotas

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
        groups: 0 for a row of the task, for a replayed one the number of its source from 1. Every batch holds the
            overall share of replayed rows, within one row; the epoch that of each source, spread over its batches.
        batch: rows of one optimizer update over all processes and accumulation steps.
        strategy: as `train_sampling_strategy` of transformers; `sequential` keeps the order of the task's rows, with
            replayed ones dealt out among them.
        seed: of this epoch.

    Every row comes at least once; the last batch is filled up from the start of another order.
    """
    rng = None if strategy == "sequential" else random.Random(seed)
    batches = -(-len(lengths) // batch)
    task = [i for i, group in enumerate(groups) if not group]
    sources = [[i for i, group in enumerate(groups) if group == number] for number in range(1, max(groups) + 1)]
    replayed = len(lengths) - len(task)
    share = round(batches * batch * replayed / len(lengths))
    each = quotas(share, [len(rows) for rows in sources]) if replayed else []
    streams = [_stream(rows, count, rng) for rows, count in zip(sources, each, strict=False)]
    streams.append(_stream(task, batches * batch - share, rng))
    counts = _counts(dealt(each), batches, batch)
    order: list[list[int]] = []
    for start in range(0, batches, WINDOW):
        order += _window(streams, counts[start : start + WINDOW], lengths, strategy, rng)
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


def _counts(replayed: Sequence[int], batches: int, batch: int) -> list[list[int]]:
    """How many rows of each stream every batch has, that of the task last.

    Args:
        replayed: the source of each replayed row of the epoch, in turn.
    """
    share, sources = len(replayed), max(replayed, default=-1) + 1
    found = []
    for b in range(batches):
        here = replayed[b * share // batches : (b + 1) * share // batches]
        found.append([*(here.count(source) for source in range(sources)), batch - len(here)])
    return found


def _window(
    streams: Sequence[Iterator[int]],
    counts: list[list[int]],
    lengths: Sequence[int],
    strategy: Strategy,
    rng: random.Random | None,
) -> list[list[int]]:
    wanted = [sum(count) for count in zip(*counts, strict=True)]
    taken = [[next(stream) for _ in range(count)] for stream, count in zip(streams, wanted, strict=True)]
    if strategy == "group_by_length":
        for rows in taken:
            rows.sort(key=lambda i: lengths[i])
    out = []
    for count in counts:
        rows = [i for stream in (-1, *range(len(streams) - 1)) for i in taken[stream][: count[stream]]]
        for stream, number in enumerate(count):
            del taken[stream][:number]
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


GROUP = "align_group"  # column: 0 for a row of the task, of a replayed one the number of its source from 1
LENGTH = "align_length"  # column: tokens of the row
