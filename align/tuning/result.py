"""What a tuning found: the trials, the best of them, the front of gain against what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from align.errors import AlignError, Exit
from align.tuning.figures import front
from align.tuning.study import Tried


@dataclass(frozen=True)
class Result:
    """All trials in order; of those that came to their end, the best and the front.

    Attributes:
        front: numbers of trials that no other beats in one figure without falling behind in the other.
    """

    trials: tuple[Tried, ...]
    best: Tried
    front: tuple[int, ...]

    @property
    def values(self) -> Mapping[str, float]:
        """Those of the best trial."""
        return self.best.record.values


def of(trials: Sequence[Tried]) -> Result:
    """From trials that are over.

    Raises:
        AlignError: none came to its end.
    """
    done = [one for one in trials if one.record.state == "done" and one.last is not None]
    if not done:
        faults = next((f": {one.record.fault}" for one in trials if one.record.fault), "")
        raise AlignError(
            f"no trial came to its end{faults}", "allow more of them, with --trials", exit=Exit.STAGE_FAILED
        )
    figures = [one.last for one in done if one.last is not None]
    best = max(zip(done, figures, strict=True), key=lambda pair: pair[1].value)[0]
    return Result(tuple(trials), best, tuple(done[n].record.number for n in front(figures)))
