"""What of a run is to be done again, `--from`, `--only` and `--fresh`; or that a stage is only tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.errors import AlignError


class Abandoned(Exception):
    """A stage that is tried is not worth the rest of its training: the run ends there, without a checkpoint."""


@dataclass(frozen=True)
class Trial:
    """A stage that is only tried: the run ends with it, and nothing is decided on what it trained.

    Attributes:
        stage: its id.
        every: steps between two measurements of the gate's items while it is trained.
    """

    stage: str
    every: int


@dataclass(frozen=True)
class Options:
    """What is asked of a run beside its recipe."""

    from_stage: str | None = None
    only: str | None = None
    fresh: bool = False
    trial: Trial | None = None

    def __post_init__(self) -> None:
        """Raises AlignError where two of them contradict each other."""
        given = [f"--from {self.from_stage}"] if self.from_stage else []
        given += [f"--only {self.only}"] if self.only else []
        given += ["--fresh"] if self.fresh else []
        if len(given) > 1:
            raise AlignError(f"{' and '.join(given)} cannot go together", "give one of them")

    def redo(self) -> str | None:
        """What is to be done again, as text; None when nothing is."""
        if not (self.from_stage or self.only or self.fresh):
            return None
        return f"from={self.from_stage} only={self.only} fresh={self.fresh}"

    def check(self, stages: Sequence[str]) -> None:
        """Raises AlignError where one names a stage that the recipe does not have."""
        for flag, name in (("--from", self.from_stage), ("--only", self.only)):
            if name is not None and name not in stages:
                what = f"{flag} names '{name}', which is not a stage of this recipe"
                raise AlignError(what, f"choose one of: {', '.join(stages)}")
