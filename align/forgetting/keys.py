"""The recipe's `forgetting`: which probes, what drop is tolerated, and what then happens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from align.errors import AlignError
from align.forgetting.measurements import ProbeInfo
from align.forgetting.own.keys import OwnProbe, check_names

DEFAULT_DROP = 0.10


def _fraction(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"a drop is a fraction of all items, from 0 to 1: write 0.1 for ten points, not {value:g}")
    return value


def _ratio(value: float) -> float:
    if not 1 <= value < math.inf:
        raise ValueError(
            f"a perplexity ratio is after divided by before, at least 1: write 1.2 for a fifth more, not {value:g}"
        )
    return value


def _probe_set(value: str) -> str:
    if value not in ("auto", "general", "lab", "none"):
        raise ValueError(
            f"{value!r} is not a set of probes: write auto, general, lab or none, or name your own, as in "
            "`probes: {medicine: {data: medicine.jsonl, metric: exact}}`"
        )
    return value


def _own_probes(value: dict[str, OwnProbe]) -> dict[str, OwnProbe]:
    check_names(value)
    return value


def _shape(value: object) -> str:
    return "by name" if isinstance(value, Mapping) else "for all"


Fraction = Annotated[float, AfterValidator(_fraction), Field(json_schema_extra={"minimum": 0, "maximum": 1})]


class ForgettingKeys(BaseModel):
    """The recipe key `forgetting`: what is measured after every stage, and how much of it may be lost."""

    model_config = ConfigDict(extra="forbid")

    probes: Annotated[
        Annotated[str, AfterValidator(_probe_set), Tag("for all")]
        | Annotated[dict[str, OwnProbe], AfterValidator(_own_probes), Tag("by name")],
        Discriminator(_shape),
    ] = Field(
        default="auto",
        description="auto (chosen for the base model), general (a battery of skills that ships with align), lab (the "
        "skills of the lab model), none, or your own by name, with `general: true` or `lab: true` among them.",
    )
    items: int = Field(
        default=25, ge=5, le=100, description="Items of each skill of `general` in each half, gate and report."
    )
    max_drop: Annotated[
        Annotated[Fraction, Tag("for all")] | Annotated[dict[str, Fraction], Tag("by name")], Discriminator(_shape)
    ] = Field(
        default=DEFAULT_DROP,
        description="Largest tolerated drop of one probe's accuracy relative to the base, 0 to 1; or limits by "
        f"probe name, with `default` for the others ({DEFAULT_DROP:g} if left out).",
    )
    max_mean_drop: Fraction = Field(
        default=0.05, description="Largest tolerated drop of the mean accuracy over all skills, 0 to 1."
    )
    max_perplexity_ratio: Annotated[float, AfterValidator(_ratio)] | None = Field(
        default=1.5,
        description="Largest tolerated perplexity after / before, at least 1; null: shown without a verdict.",
    )
    on_violation: Literal["warn", "stop"] = Field(
        default="warn", description="warn: report it and continue; stop: end the run after the stage that forgot."
    )

    @model_validator(mode="after")
    def _limits_of_own_probes(self) -> ForgettingKeys:
        """Own probes are known as soon as the recipe is; the names in a set only once the base is measured."""
        known = isinstance(self.probes, dict) and True not in self.probes.values()
        unknown = self._unknown_limits(self.probes) if known else None
        if unknown:
            raise ValueError(unknown)
        return self

    def limit(self, probe: str, info: ProbeInfo) -> float | None:
        """The limit of one probe: a drop of accuracy, or a perplexity ratio; None where it is not judged.

        Agreement with the base's own answers falls with anything that is learnt, so it is judged only by name.
        """
        if info.metric == "perplexity":
            return self.max_perplexity_ratio
        if isinstance(self.max_drop, dict):
            default = None if info.kind == "agreement" else self.max_drop.get("default", DEFAULT_DROP)
            return self.max_drop.get(probe, default)
        return None if info.kind == "agreement" else self.max_drop

    def check_names(self, probes: Iterable[str]) -> None:
        """Refuse a limit for a probe that is not measured, which would silently limit nothing.

        Raises:
            AlignError: naming the probes that there are.
        """
        unknown = self._unknown_limits(probes)
        if unknown:
            raise AlignError(unknown, "correct the name under `forgetting.max_drop`, or remove it")

    def thresholds(self) -> dict[str, float | dict[str, float] | str | None]:
        """What was judged by, as it is written into decisions and the matrix."""
        return {
            "max_drop": self.max_drop,
            "max_mean_drop": self.max_mean_drop,
            "max_perplexity_ratio": self.max_perplexity_ratio,
            "on_violation": self.on_violation,
        }

    def _unknown_limits(self, probes: Iterable[str]) -> str | None:
        known = list(probes)
        named = set(self.max_drop) - {"default"} if isinstance(self.max_drop, dict) else set()
        unknown = sorted(named - set(known))
        if not unknown:
            return None
        return f"max_drop has limits for {', '.join(unknown)}, but the probes are {', '.join(known) or 'none'}"
