"""Rows in the order in which training steps take them, so that each can have values that hang on its batch.

A row comes again in the next epoch, and sometimes to fill the last batch of one, and each time in another batch. So a
place is what is counted here: place p of epoch e is number e * (places of an epoch) + p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from align.data.order import RowOrder


class StepRows(TorchDataset[dict[str, Any]]):
    """The rows by their places.

    Attributes:
        rows: as they were given, in no order.
        order: the order of each epoch.
        epochs: so many have an order of their own; after them they come again from the first.
        places: the row index at each place of these epochs.
        columns: what a place has beside its row, by name, in the order of places.
    """

    def __init__(self, rows: Dataset, order: RowOrder, epochs: int) -> None:
        self.rows, self.order, self.epochs = rows, order, epochs
        self.places = [row for epoch in range(epochs) for row in order.rows(epoch)]
        self.columns: dict[str, Sequence[Any]] = {}

    def __len__(self) -> int:
        """The places of one epoch."""
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        beside = {name: values[place] for name, values in self.columns.items()}
        return {**self.rows[self.places[place]], **beside}


class StepSampler:
    """A sampler of a torch DataLoader that gives the places of an epoch; transformers calls `set_epoch`."""

    def __init__(self, rows: StepRows) -> None:
        self.length, self.epochs, self.epoch = len(rows), rows.epochs, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        start = self.epoch % self.epochs * self.length
        return iter(range(start, start + self.length))


class Elsewhere(Sequence[Any]):
    """A column of other rows than a place's own, looked up when it is asked for."""

    def __init__(self, rows: Dataset, column: str, indices: Sequence[int]) -> None:
        self.rows, self.column, self.indices = rows, column, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: Any) -> Any:
        return self.rows[self.indices[place]][self.column]
