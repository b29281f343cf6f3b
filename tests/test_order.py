"""The order of rows: every row, the exact share of replay in every update, and the same for any number of processes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from align.data.order import STRATEGIES, RowOrder, Strategy, epoch

# Rows of the task, replayed rows, rows of a global batch.
SIZES = [(96, 32, 8), (97, 31, 8), (1000, 111, 16), (5, 2, 8), (1, 0, 4), (7, 9, 1), (333, 0, 32), (40, 1, 8)]


def table(task: int, replayed: int) -> tuple[list[int], list[int]]:
    """Lengths and groups, the replayed rows last, as a stage has them."""
    rng = random.Random(task)
    lengths = [rng.randint(5, 200) for _ in range(task + replayed)]
    return lengths, [0] * task + [1] * replayed


def batches(order: Sequence[int], batch: int) -> list[list[int]]:
    return [list(order[start : start + batch]) for start in range(0, len(order), batch)]


def padding(order: Sequence[int], lengths: Sequence[int], batch: int) -> float:
    """Share of the positions of all padded batches that hold padding."""
    whole = sum(max(lengths[i] for i in rows) * len(rows) for rows in batches(order, batch))
    return 1 - sum(lengths[i] for i in order) / whole


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("task", "replayed", "batch"), SIZES)
def test_every_row_comes_and_the_batches_are_full(strategy: Strategy, task: int, replayed: int, batch: int) -> None:
    lengths, groups = table(task, replayed)
    for seed in range(5):
        order = epoch(lengths, groups, batch, strategy=strategy, seed=seed)
        assert set(order) == set(range(task + replayed))
        assert len(order) % batch == 0
        assert len(order) - (task + replayed) < batch, "no more rows come twice than it takes to fill the last batch"
        assert len(RowOrder(lengths, groups, batch, strategy, seed)) == len(order)


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
@pytest.mark.parametrize(("task", "replayed", "batch"), SIZES)
def test_the_share_of_replay(strategy: Strategy, task: int, replayed: int, batch: int) -> None:
    lengths, groups = table(task, replayed)
    share = Fraction(replayed, task + replayed)
    order = epoch(lengths, groups, batch, strategy=strategy, seed=1)
    found = [sum(groups[i] for i in rows) for rows in batches(order, batch)]
    for count in found:
        assert abs(count - share * batch) < 1, f"{count} replayed rows in a batch of {batch}, the share is {share}"
    assert abs(sum(found) - share * len(order)) <= Fraction(1, 2)


def test_a_whole_number_of_replayed_rows_is_in_every_batch() -> None:
    lengths, groups = table(96, 32)
    order = epoch(lengths, groups, 8, strategy="group_by_length", seed=0)
    assert [sum(groups[i] for i in rows) for rows in batches(order, 8)] == [2] * 16
    assert Counter(order) == Counter(range(128))


def dealt(order: RowOrder, processes: int, per_device: int) -> list[list[list[int]]]:
    """What each process gets in one epoch, batch by batch, through accelerate's own data loader."""
    loader = DataLoader(list(range(len(order.lengths))), batch_size=per_device, sampler=order, collate_fn=torch.tensor)
    out = []
    for rank in range(processes):
        mine = prepare_data_loader(
            loader, device=torch.device("cpu"), num_processes=processes, process_index=rank, put_on_device=False
        )
        # accelerate waits for the other processes before an epoch, of which there are none here
        mine.rng_types, mine.synchronized_generator = None, None
        out.append([rows.tolist() for rows in mine])
    return out


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("task", "replayed"), [(96, 32), (101, 20), (5, 2)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_make_the_same_global_batches(
    strategy: Strategy, task: int, replayed: int, accumulation: int
) -> None:
    lengths, groups = table(task, replayed)
    rows = 16
    seen = {}
    for processes in (1, 2, 4):
        per_device = rows // processes // accumulation
        order = RowOrder(lengths, groups, rows, strategy, seed=4)
        ranks = dealt(order, processes, per_device)
        assert len({len(mine) for mine in ranks}) == 1, "every process makes the same number of steps"
        updates = []
        for start in range(0, len(ranks[0]), accumulation):
            parts = [mine[step] for step in range(start, start + accumulation) for mine in ranks]
            updates.append([i for part in parts for i in part])
        seen[processes] = updates
    assert all(len(update) == rows for update in seen[1])
    assert seen[1] == seen[2] == seen[4]
    assert [i for update in seen[1] for i in update] == RowOrder(lengths, groups, rows, strategy, seed=4).rows(0)


def test_accelerate_hands_the_epoch_on_to_the_order() -> None:
    lengths, groups = table(30, 10)
    order = RowOrder(lengths, groups, 8, "random", seed=4)
    loader = DataLoader(list(range(40)), batch_size=4, sampler=order, collate_fn=torch.tensor)
    mine = prepare_data_loader(
        loader, device=torch.device("cpu"), num_processes=2, process_index=0, put_on_device=False
    )
    mine.set_epoch(3)
    assert order.epoch == 3


def test_grouping_by_length_saves_padding() -> None:
    """Against the same rows in random order, on lengths that spread as chats do."""
    rng = random.Random(0)
    lengths = [min(2000, int(rng.lognormvariate(5, 0.8)) + 8) for _ in range(4000)]
    groups = [int(i >= 3200) for i in range(4000)]
    wasted = {
        strategy: padding(epoch(lengths, groups, 16, strategy=strategy, seed=1), lengths, 16)
        for strategy in ("random", "group_by_length")
    }
    assert wasted["random"] > 0.5
    assert wasted["group_by_length"] < 0.2 * wasted["random"]


@pytest.mark.parametrize("seed", range(6))
def test_the_longest_row_is_in_the_first_batch(seed: int) -> None:
    lengths, groups = table(900, 100)
    lengths[123] = 999
    order = epoch(lengths, groups, 8, strategy="group_by_length", seed=seed)
    assert 123 in order[:8]


def test_grouped_batches_do_not_come_in_order_of_length() -> None:
    lengths, groups = table(400, 0)
    order = epoch(lengths, groups, 8, strategy="group_by_length", seed=0)
    sums = [sum(lengths[i] for i in rows) for rows in batches(order, 8)]
    rising = sum(one < two for one, two in pairwise(sums))
    assert 15 <= rising <= 34, f"{rising} of 49 batches are longer than the one before"


def test_sequential_is_the_order_of_the_data() -> None:
    lengths, groups = table(8, 2)
    assert epoch(lengths, groups, 5, strategy="sequential", seed=9) == [0, 1, 2, 3, 8, 4, 5, 6, 7, 9]
    assert epoch(lengths, [0] * 10, 5, strategy="sequential", seed=9) == list(range(10))
    assert epoch(lengths, [0] * 10, 4, strategy="sequential", seed=9) == [*range(10), 0, 1]
    mixed = epoch([1] * 8, [0, 0, 0, 0, 0, 0, 1, 1], 4, strategy="sequential", seed=9)
    assert mixed == [0, 1, 2, 6, 3, 4, 5, 7], "the task in its order, a replayed row in each batch"


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_another_epoch_and_another_seed_have_another_order(strategy: Strategy) -> None:
    lengths, groups = table(96, 32)
    orders = [RowOrder(lengths, groups, 8, strategy, seed).rows(number) for seed in (0, 1, 2) for number in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 9


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_gives_the_same_order(strategy: Strategy) -> None:
    lengths, groups = table(96, 33)
    one, two = (RowOrder(lengths, groups, 8, strategy, 7) for _ in range(2))
    for number in (2, 0, 1):
        one.set_epoch(number)
        two.set_epoch(number)
        assert list(one) == list(two) == one.rows(number)
    random.seed(5)
    torch.manual_seed(5)
    assert list(one) == list(two), "the order hangs on its own seed only"


@pytest.mark.parametrize("steps", [1, 3, 5, 7, 11, 40])
def test_used_are_the_rows_that_the_steps_see(steps: int) -> None:
    lengths, groups = table(30, 5)
    order = RowOrder(lengths, groups, 8, "group_by_length", 2)
    seen: set[int] = set()
    left, number = steps, 0
    while left:
        order.set_epoch(number)
        for rows in batches(list(order), 8):
            if left:
                seen |= set(rows)
                left -= 1
        number += 1
    assert order.used(steps) == seen
    assert (len(seen) < 35) == (steps < 5)
