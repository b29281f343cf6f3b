"""Figures of a reward model on held-out pairs that are more than one number, among the metrics of its outcome."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from align.run_folder.records import Record


class ScoreHistogram(Record):
    """How often a reward model gave which score: counts between `edges`, of the better and of the worse answers."""

    edges: tuple[float, ...]
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.edges) - 1 == len(self.chosen) == len(self.rejected) > 0:
            raise ValueError("the counts are not one fewer than the edges")
        return self


class CalibrationBin(Record):
    """Pairs of about the same predicted share of right choices, and the share of them that was right."""

    predicted: float
    observed: float
    count: int
