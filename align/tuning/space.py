"""What a tuning varies: dimensions of a stage with their ranges, and the recipe's keys that they set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from align.errors import AlignError, did_you_mean
from align.recipe.plan import StagePlan

Name = Literal["learning_rate", "rank", "replay"]
Values = Mapping[str, float]
"""By the name of the dimension."""

NAMES: Final[tuple[Name, ...]] = ("learning_rate", "rank", "replay")
WIDE: Final = {"learning_rate": 8.0, "rank": 4.0}
"""By what the recipe's value is divided and multiplied where no range is given."""
LARGEST_RANK: Final = 256
MOST_REPLAY: Final = 0.5


@dataclass(frozen=True)
class Dimension:
    """One value that is varied.

    Attributes:
        low, high: its ends. Rates and ranks are looked for on a logarithmic scale, ranks among powers of two.
        own: what the recipe has; it may lie outside.
    """

    name: Name
    low: float
    high: float
    own: float

    def at(self, place: float) -> float:
        """The value at a place between 0, the low end, and 1."""
        if self.name == "replay":
            return round(self.low + place * (self.high - self.low), 3)
        value = self.low * (self.high / self.low) ** place
        if self.name == "learning_rate":
            return float(f"{value:.3g}")
        return min(self.ranks, key=lambda rank: abs(math.log(rank / value)))

    @property
    def ranks(self) -> list[float]:
        """The powers of two within the range; the lower end where there is none."""
        return [2.0**n for n in range(9) if self.low <= 2**n <= self.high] or [self.low]

    def place(self, value: float) -> float:
        """Where a value lies between the ends."""
        value = min(max(value, self.low), self.high)
        if self.low == self.high:
            return 0.5
        if self.name == "replay":
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)


def dimensions(asked: Sequence[str], plan: StagePlan, stages: Sequence[StagePlan]) -> tuple[Dimension, ...]:
    """The dimensions of a stage, as given to `--over`: `learning_rate`, or `rank=8:64` with a range.

    Args:
        stages: all of the recipe.

    Raises:
        AlignError: the stage has no such value, it cannot change alone, or the range is none.
    """
    found: dict[str, Dimension] = {}
    for text in asked or ("learning_rate",):
        name, equals, ends = text.partition("=")
        if name not in NAMES:
            raise AlignError(f"--over {text}: '{name}' is nothing to tune", did_you_mean(name, NAMES))
        if name in found:
            raise AlignError(f"--over names '{name}' twice", "give each once")
        own = _own(name, plan)
        if name == "rank":
            _refuse_shared(plan, stages)
        low, high = _ends(text, name, ends) if equals else _usual(name, own)
        found[name] = Dimension(name, low, high, own)
    return tuple(found.values())


def texts(values: Values, plan: StagePlan) -> tuple[str, ...]:
    """What sets these values in a recipe, each as given to `--set`."""
    at = f"stages.{plan.id}"
    found = []
    for name, value in settings(values, plan).items():
        found.append(f"{at}.{name}={json.dumps(value)}")
    return tuple(found)


def settings(values: Values, plan: StagePlan) -> dict[str, Any]:
    """The keys of a stage that these values set, with dots between a key and one below it."""
    found: dict[str, Any] = {}
    if "learning_rate" in values:
        found["training.learning_rate"] = values["learning_rate"]
    if "rank" in values:
        given = plan.method_keys.model_dump(mode="json", exclude_unset=True)
        rank, lora = int(values["rank"]), plan.method_keys.model_dump(mode="json")["lora"]
        more = rank / lora["r"]
        grown = more**0.5 if lora.get("use_rslora") else more  # which scales by alpha / sqrt(r)
        scale = {"r": rank, "alpha": max(1, round(lora["alpha"] * grown))}
        found["parameterization"] = {**given, "lora": {**given.get("lora", {}), **scale}}
    if "replay" in values:
        assert plan.replay is not None
        found["replay"] = {**plan.replay.model_dump(mode="json", exclude_unset=True), "ratio": values["replay"]}
    return found


def _own(name: str, plan: StagePlan) -> float:
    """The recipe's value.

    Raises:
        AlignError: it has none.
    """
    if name == "learning_rate":
        rate = plan.training.get("learning_rate")
        if not isinstance(rate, int | float) or rate <= 0:
            what = f"--over learning_rate: the stage '{plan.id}' gives no learning rate above 0"
            raise AlignError(what, f"write stages.{plan.id}.training.learning_rate, which the trials stand around")
        return float(rate)
    if name == "rank":
        lora = getattr(plan.method_keys, "lora", None)
        if lora is None:
            what = f"the stage '{plan.id}' trains with '{plan.method_keys.method}', which has no `lora: {{r: ...}}`"
            raise AlignError(f"--over rank: {what}", "leave it out, or tune a recipe with lora or qlora")
        return float(lora.r)
    if plan.replay is None:
        remedy = "write `replay: {data: ..., ratio: 0.1}` in the recipe, or leave it out"
        raise AlignError(f"--over replay: the stage '{plan.id}' replays nothing", remedy)
    return plan.replay.ratio


def _refuse_shared(plan: StagePlan, stages: Sequence[StagePlan]) -> None:
    """Refuse ranks that would change more than the rank.

    Raises:
        AlignError: another stage trains the same adapter, or there are ranks of single modules.
    """
    lora = plan.method_keys.model_dump(mode="json")["lora"]
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if lora.get(name)]
    if patterns:
        raise AlignError(f"--over rank: '{plan.id}' has a {patterns[0]} beside its rank", "leave --over rank out")
    for one in stages:
        joined = one.id == plan.policy or one.policy == plan.id
        if joined and one.method_keys == plan.method_keys and plan.layer.traits.continues:
            what = f"--over rank: '{one.id}' and '{plan.id}' train the same adapter, so its rank cannot change in one"
            raise AlignError(what, "leave --over rank out, or give each stage a `parameterization` of its own")


def _usual(name: str, own: float) -> tuple[float, float]:
    if name == "replay":
        return 0.0, max(MOST_REPLAY, own)
    low, high = own / WIDE[name], own * WIDE[name]
    return (max(1.0, low), min(float(LARGEST_RANK), high)) if name == "rank" else (low, high)


def _ends(text: str, name: str, given: str) -> tuple[float, float]:
    """The ends that the user gives.

    Raises:
        AlignError: they are none.
    """
    example = {"learning_rate": "learning_rate=1e-4:1e-2", "rank": "rank=8:64", "replay": "replay=0:0.4"}[name]
    first, _, last = given.partition(":")
    try:
        low, high = float(first), float(last)
    except ValueError:
        raise AlignError(f"--over {text}: '{given}' is no range", f"write LOW:HIGH, as in --over {example}") from None
    limits = {"learning_rate": (0.0, math.inf), "rank": (1, LARGEST_RANK), "replay": (0, 0.99)}[name]
    inside = limits[0] <= low <= high <= limits[1] and math.isfinite(high) and (low > 0 or name == "replay")
    if not inside or (name == "rank" and not (low.is_integer() and high.is_integer())):
        wanted = {
            "learning_rate": "two numbers above 0, the smaller first",
            "rank": f"two whole numbers from 1 to {LARGEST_RANK}, the smaller first",
            "replay": "two shares from 0 to 0.99, the smaller first",
        }[name]
        raise AlignError(f"--over {text}: a range is {wanted}", f"for example, --over {example}")
    return low, high
