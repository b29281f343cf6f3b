"""What of a run is to be done again: `--from`, `--only` and `--fresh`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.errors import AlignError


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    from_stage: str | None = None
    only: str | None = None
    fresh: bool = False

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
