"""How often a policy is measured while it is trained: every so many steps, or as often as a share of the stage's CPU
time allows. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from align.run_folder import files, reading
from align.run_folder.records import Record

SHARE = 0.1  # of a stage's CPU time, at most
WAITED = 10  # steps whose cost is looked at before the first measurement is planned, of a long stage


class Pace(Record):
    """every.json: what `every: auto` came to, once.

    Attributes:
        first: the step of the first measurement, by what the incoming policy's took.
        every: steps between the later ones, by what the first one took; None until then.
        step_cpu_seconds, measurement_cpu_seconds: what that was chosen by.
    """

    first: int
    every: int | None = None
    step_cpu_seconds: float | None = None
    measurement_cpu_seconds: float | None = None


def apart(measurement: float, step: float) -> int:
    """The least number of steps between two measurements that leaves these SHARE of all, from CPU seconds of each."""
    return max(1, math.ceil((1 - SHARE) / SHARE * measurement / max(step, 1e-9)))


@dataclass
class Schedule:
    """Which steps are followed by a measurement.

    Attributes:
        asked: `every` of the recipe.
        last: the last step of the stage.
        ends: whether the last step is measured in any case: a limit that is broken there ends the stage too.
        pace: what `auto` came to.
    """

    asked: int | Literal["auto"]
    last: int
    ends: bool
    pace: Pace | None = None

    @property
    def every(self) -> int | None:
        """Steps between two measurements, as far as that is known."""
        if self.asked != "auto":
            return self.asked
        return self.pace.every if self.pace else None

    @property
    def waits(self) -> int:
        """So many steps show what one costs."""
        return min(WAITED, max(2, self.last // 20))

    def due(self, step: int) -> bool:
        """Whether a measurement follows this step. The last is measured at rest in any case, after the stage."""
        if step >= self.last:
            return self.ends
        if self.asked != "auto":
            return step % self.asked == 0
        if self.pace is None:
            return False
        if step == self.pace.first:
            return True
        # the first may have cost more than was foreseen: the second comes when both together are within their share
        every = self.pace.every
        return every is not None and step > self.pace.first and step >= 2 * every and step % every == 0

    def begin(self, step: int, measurement: float, one_step: float) -> Pace:
        """Plan the first measurement at a step, from CPU seconds."""
        return Pace(
            first=max(step, apart(measurement, one_step)),
            step_cpu_seconds=round(one_step, 4),
            measurement_cpu_seconds=round(measurement, 4),
        )

    def settle(self, pace: Pace, measurement: float, one_step: float) -> Pace:
        """Plan the others once the first is made."""
        return pace.but(
            every=apart(measurement, one_step),
            step_cpu_seconds=round(one_step, 4),
            measurement_cpu_seconds=round(measurement, 4),
        )


def read(path: Path) -> Pace | None:
    """What was chosen before; None where nothing was."""
    return reading.whole(path, Pace)


def write(path: Path, pace: Pace) -> None:
    """Keep what was chosen."""
    files.write_json(path, pace.written())
