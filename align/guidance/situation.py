"""What is asked and what is known before a first run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Goal = Literal["balanced", "quality", "prototype", "domain", "provider"]
GOALS: Final[dict[str, str]] = {
    "balanced": "a good model on this device",
    "quality": "the best model, at whatever cost",
    "prototype": "a first try, as fast and small as can be",
    "domain": "to specialise on a domain",
    "provider": "to train through a provider's API",
}
METHODS: Final = ("full", "lora", "qlora", "adapter", "prefix_tuning")
"""Those that are chosen from."""

BILLION: Final = 10**9
GB: Final = 10**9


@dataclass(frozen=True)
class Needs:
    """What a stage takes with one row at a time, with the longest row of the data.

    Attributes:
        peak: bytes of one device.
        row: bytes of it that each further row in a batch adds.
        exact: whether it was traced; otherwise it is counted by a formula.
    """

    peak: int
    row: int
    exact: bool = True

    def of(self, rows: int) -> int:
        """Bytes with so many rows at a time."""
        return self.peak + (rows - 1) * self.row


@dataclass(frozen=True)
class Situation:
    """Everything that the choice depends on.

    Attributes:
        parameters: of the base.
        memory: bytes of one device that tensors may fill; None where that is not known.
        label: of one device in GB, as its box says.
        devices: how many of them.
        tasks: that one base is to serve, each with an adapter of its own.
        rows: of the data.
        far: whether the data are far from what the base was pretrained on.
        stage: the program that the data are for.
        needs: by method; those that could not be told are missing.
    """

    parameters: int
    memory: int | None
    label: float | None
    rows: int
    stage: str
    goal: Goal = "balanced"
    devices: int = 1
    tasks: int = 1
    far: bool = False
    needs: Mapping[str, Needs] = field(default_factory=dict)

    @property
    def billions(self) -> float:
        """Parameters of the base."""
        return self.parameters / BILLION

    def fits(self, method: str, rows: int = 1) -> bool | None:
        """Whether it fits on one device; of full training on several, whether it does with FSDP2, which shares all of
        its state out. None where one of the two is not known."""
        found = self.needs.get(method)
        if found is None or self.memory is None:
            return None
        return self.of_a_device(method, rows) <= self.memory

    def of_a_device(self, method: str, rows: int = 1) -> float:
        """Bytes of each device: several share all but the rows of full training where it does not fit on one."""
        found = self.needs[method]
        alone = self.memory is None or found.of(rows) <= self.memory
        if method != "full" or self.devices == 1 or alone:
            return found.of(rows)
        return (found.peak - found.row) / self.devices + rows * found.row
