"""The recipe's `forgetting.budgets`: what a stage may cost and how bad a figure may be, whatever it was before."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

BYTES = {
    **{unit: 1000**power for power, unit in enumerate(("B", "KB", "MB", "GB", "TB"))},
    **{unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), start=1)},
}
SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_AMOUNT = r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)"

Budget = float | dict[str, float] | str
"""As it stands in a recipe: a number, numbers by the name of a probe, or a number with its unit."""


def memory(text: str) -> int:
    """Bytes of `20GB` (10^9 each) or `20GiB` (2^30).

    Raises:
        ValueError: it is no such size.
    """
    found = re.fullmatch(_AMOUNT, text.strip())
    unit = found and next((unit for unit in BYTES if unit.lower() == found[2].lower()), None)
    if not found or unit is None or not float(found[1]):
        raise ValueError(f"{text!r} is not a size of memory: write a number and its unit, as in 20GB or 24GiB")
    return int(float(found[1]) * BYTES[unit])


def seconds(value: float | str) -> float:
    """Seconds of `2h`, `1h 30min`, `90s`, `800ms`, or of a number, which is seconds.

    Raises:
        ValueError: it is no such time.
    """
    if not isinstance(value, str):
        total = float(value)
    else:
        parts = re.findall(_AMOUNT, value)
        whole = re.fullmatch(rf"\s*(?:{_AMOUNT}\s*)+", value) and all(unit.lower() in SECONDS for _, unit in parts)
        total = sum(float(amount) * SECONDS[unit.lower()] for amount, unit in parts) if whole else 0.0
    if not 0 < total < math.inf:
        raise ValueError(f"{value!r} is not a time: write seconds, or a number and its unit, as in 90s, 30min or 2h")
    return total


def first_unit(value: float | str) -> str:
    """The unit of a time that `seconds` takes, the first where it has several."""
    found = re.search(_AMOUNT, value) if isinstance(value, str) else None
    return found[2].lower() if found else "s"


def _memory(value: str) -> str:
    memory(value)
    return value


def _time(value: float | str) -> float | str:
    seconds(value)
    return value


def _ceiling(value: float) -> float:
    if not 1 <= value < math.inf:
        raise ValueError(f"a perplexity is at least 1: write its ceiling, as in 40, not {value:g}")
    return value


def _floor(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"an accuracy is from 0 to 1: write 0.5 for half of the items, not {value:g}")
    return value


def _shape(value: object) -> str:
    return "by name" if isinstance(value, Mapping) else "for all"


def _kind(value: object) -> str:
    return "text" if isinstance(value, str) else "number"


Ceiling = Annotated[float, AfterValidator(_ceiling), Field(json_schema_extra={"minimum": 1})]
Floor = Annotated[float, AfterValidator(_floor), Field(json_schema_extra={"minimum": 0, "maximum": 1})]
Time = Annotated[
    Annotated[float, Tag("number")] | Annotated[str, Tag("text")], Discriminator(_kind), AfterValidator(_time)
]


class Budgets(BaseModel):
    """`forgetting.budgets`."""

    model_config = ConfigDict(extra="forbid")

    perplexity: (
        Annotated[
            Annotated[Ceiling, Tag("for all")] | Annotated[dict[str, Ceiling], Tag("by name")], Discriminator(_shape)
        ]
        | None
    ) = Field(default=None, description="Highest perplexity of each probe of running text, or by probe name.")
    accuracy: (
        Annotated[Annotated[Floor, Tag("for all")] | Annotated[dict[str, Floor], Tag("by name")], Discriminator(_shape)]
        | None
    ) = Field(default=None, description="Lowest accuracy of each skill and task, 0 to 1, or by probe name.")
    peak_memory: Annotated[str, AfterValidator(_memory)] | None = Field(
        default=None, description="Most memory of a stage, with its unit: 20GB or 24GiB; of the GPU if there is one."
    )
    wall_time: Time | None = Field(
        default=None, description="Longest time of a stage, training and measuring: seconds, or 90s, 30min, 2h."
    )
    latency: Time | None = Field(
        default=None, description="Longest median time of a greedy answer, one at a time: seconds, or 800ms, 1.5s."
    )

    def given(self) -> dict[str, Budget]:
        """Those that the recipe sets, as it writes them."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def named(self) -> dict[str, list[str]]:
        """The probes that a budget names."""
        return {name: list(value) for name, value in self.given().items() if isinstance(value, dict)}

    def unknown(self, probes: Iterable[str]) -> str | None:
        """What is wrong, where one names a probe that there is not."""
        known = list(probes)
        for budget, names in self.named().items():
            missing = sorted(set(names) - set(known))
            if missing:
                are = ", ".join(known) or "none"
                return f"budgets.{budget} names {', '.join(missing)}, but the probes are {are}"
        return None
