"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "note", "fault"]


@dataclass(frozen=True)
class Finding:
    """What was found of it.

    Attributes:
        state: `fault`: something does not work without it; `note`: something that not everybody needs is not there.
        remedy: the line that mends it, or what to do.
    """

    about: str
    state: State
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        head = f"{self.state:<6}{self.about}: {self.found}"
        return f"{head}\n      -> {self.remedy}" if self.remedy else head

    def as_json(self) -> dict[str, str]:
        return asdict(self)
