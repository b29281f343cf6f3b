"""The recipe's `forgetting`: which probes, what drop is tolerated, and what then happens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, TypeGuard

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)

from align.errors import AlignError
from align.forgetting import action_keys
from align.forgetting.action_keys import Interpolate, OnViolation, Retry
from align.forgetting.budget_keys import Budgets
from align.forgetting.measurements import ProbeInfo
from align.forgetting.own.keys import OwnProbe, check_form, check_names

DEFAULT_DROP = 0.10
FEWEST_ITEMS, MOST_ITEMS = 10, 200  # of a skill of the general battery


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


def _nats(value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"a limit for the KL is a number of nats per token above 0, such as 0.3, not {value:g}")
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
        BeforeValidator(check_form),
    ] = Field(
        default="auto",
        description="auto (chosen for the base model), general (a battery of skills that ships with align), lab (the "
        "skills of the lab model), none, or your own by name, with `general: true` or `lab: true` among them.",
    )
    items: Annotated[int, Field(ge=FEWEST_ITEMS, le=MOST_ITEMS)] | Literal["auto"] = Field(
        default="auto",
        description="Items of each skill of `general`, half for the gate and half for the report; auto: as many as "
        "`budget` allows, 25 to 200.",
    )
    budget: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1,
        description="The share of the first stage's training that one measurement of `general` may cost, by which "
        "`items: auto` is chosen.",
    )
    answers: bool = Field(
        default=True,
        description="Also keep the answers of the base and of every stage to the same few prompts, to be read side by "
        "side; not with `probes: none`.",
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
    max_kl: Annotated[float, AfterValidator(_nats)] | None = Field(
        default=None,
        description="Largest tolerated KL to the base on the prompts of the task, in nats per answer token; null: "
        "shown without a verdict.",
    )
    on_violation: OnViolation = Field(
        default="warn",
        description="warn: report it and continue; stop: end the run after the stage that forgot; rollback: go on from "
        "the policy before the stage; retry: train it again, with what `retry` changes; interpolate: go on from a "
        "share of its update; or several in order, [retry, rollback]; or these by probe name, with `default`.",
    )
    retry: Retry | None = Field(
        default=None, description="What `on_violation: retry` changes: factors of replay, learning_rate and max_steps."
    )
    interpolate: Interpolate | None = Field(
        default=None, description="How `on_violation: interpolate` takes a share of the stage's update."
    )
    every: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="Measure the gate half inside a stage too, every so many steps; auto: as often as a tenth of the "
        "stage's CPU time allows.",
    )
    watch: list[str] | None = Field(default=None, description="The probes that `every` measures; by default all.")
    early_stop: bool = Field(
        default=False,
        description="With `every`: end a stage that has surely broken a limit, and keep its last weights within them.",
    )

    budgets: Budgets | None = Field(
        default=None, description="What each stage must keep to whatever the base did: perplexity, accuracy, costs."
    )
    on_budget: Literal["warn", "stop"] = Field(
        default="warn", description="warn: report a crossed budget and continue; stop: end the run after the stage."
    )

    @model_validator(mode="after")
    def _budgets_need_probes(self) -> ForgettingKeys:
        if self.budgets is not None and self.probes == "none":
            idle = [name for name in ("perplexity", "accuracy", "latency") if name in self.budgets.given()]
            if idle:
                raise ValueError(f"budgets.{idle[0]} needs probes, and there are none: write `probes: auto`")
        return self

    @model_validator(mode="after")
    def _limits_of_own_probes(self) -> ForgettingKeys:
        """Own probes are known as soon as the recipe is; the names in a set only once the base is measured."""
        unknown = self.unlimited(self.probes) if self._all_named(self.probes) else None
        if unknown:
            raise ValueError(unknown)
        if self.max_kl is not None and self.probes == "none":
            raise ValueError("max_kl limits nothing with `probes: none`, which measures nothing: write `probes: auto`")
        return self

    @model_validator(mode="after")
    def _inside_a_stage(self) -> ForgettingKeys:
        """What is asked of a measurement inside a stage, and cannot be done."""
        if self.every is None and (self.watch is not None or self.early_stop):
            key = "early_stop" if self.early_stop else "watch"
            raise ValueError(f"`{key}` acts on measurements inside a stage, and there are none: write `every: auto`")
        if self.every is not None and self.probes == "none":
            raise ValueError("`every` measures probes inside a stage, and there are none: write `probes: auto`")
        if self.watch == []:
            raise ValueError("`watch` names no probe: write the names of some, or leave it out to measure all")
        unknown = self.unwatched(self.probes) if self._all_named(self.probes) else None
        if unknown:
            raise ValueError(unknown)
        return self

    @staticmethod
    def _all_named(probes: str | dict[str, OwnProbe]) -> TypeGuard[dict[str, OwnProbe]]:
        """Whether the recipe alone says what its probes are called: a set among them brings names of its own."""
        return isinstance(probes, dict) and True not in probes.values()

    def unwatched(self, probes: Iterable[str]) -> str | None:
        """What is wrong with `watch`, of a recipe with these probes; None where nothing is."""
        known = list(probes)
        unknown = [name for name in self.watch or () if name not in known]
        if not unknown:
            return None
        return f"`watch` names {', '.join(unknown)}, but the probes are {', '.join(known)}"

    def limit(self, probe: str, info: ProbeInfo) -> float | None:
        """The limit of one probe: a drop of accuracy, or a perplexity ratio; None where it is not judged.

        Agreement with the base's own answers, which runs of an older align measured, falls with anything that is
        learnt, so it is judged only by name.
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
        unknown = self.unlimited(probes)
        if unknown:
            key = unknown.partition(" ")[0]
            raise AlignError(unknown, f"correct the name under `forgetting.{key}`, or remove it")

    def thresholds(self) -> dict[str, JsonValue]:
        """What was judged by, as it is written into decisions and the matrix."""
        budgets = self.budgets.model_dump(mode="json", exclude_none=True) if self.budgets else {}
        judged = self.model_dump(mode="json", include={"max_drop", "on_violation"})
        used = action_keys.used(self.on_violation)
        acting = {"retry": self.retry, "interpolate": self.interpolate or Interpolate()}
        return {
            **{f"budgets.{name}": value for name, value in budgets.items()},
            **({"on_budget": self.on_budget} if budgets else {}),
            "max_drop": judged["max_drop"],
            "max_mean_drop": self.max_mean_drop,
            "max_perplexity_ratio": self.max_perplexity_ratio,
            **({} if self.max_kl is None else {"max_kl": self.max_kl}),  # which older decisions do not name
            "on_violation": judged["on_violation"],
            **{name: keys.model_dump(mode="json") for name, keys in acting.items() if keys and name in used},
        }

    def limits(self) -> dict[str, JsonValue]:
        """The keys that are limits: what a figure is held against. What then happens only where some limits warn and
        others do more, since a share of an update is to keep those alone."""
        names = {"max_drop", "max_mean_drop", "max_perplexity_ratio", "max_kl"}
        acts = {"on_violation"} if action_keys.some_only_warn(self.on_violation) else set()
        return {**self.model_dump(mode="json", include=names | acts)}

    def unlimited(self, probes: Iterable[str]) -> str | None:
        """What is wrong with the names in limits and budgets, of a recipe with these probes; None where nothing is."""
        known = list(probes)
        named = set(self.max_drop) - {"default"} if isinstance(self.max_drop, dict) else set()
        unknown = sorted(named - set(known))
        acts = action_keys.unknown(self.on_violation, known)
        if not unknown and acts:
            others = f"{', '.join(known) or 'none'}, and `mean`, `kl` and `default` are for the others"
            return f"on_violation has actions for {', '.join(acts)}, but the probes are {others}"
        if not unknown:
            return self.budgets.unknown(known) if self.budgets else None
        return f"max_drop has limits for {', '.join(unknown)}, but the probes are {', '.join(known) or 'none'}"
