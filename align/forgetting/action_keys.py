"""What a recipe wants done where a limit is violated: one action, several in order, or some for each probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

Action = Literal["warn", "stop", "rollback", "retry", "interpolate"]
STRICTNESS: Final = ("warn", "retry", "interpolate", "rollback", "stop")
"""From the action that keeps most of what was trained to the one that ends the run."""
First = Literal["continue", "stop", "rollback", "retry", "interpolate"]
"""What a verdict asks for first: an action, or that the run just goes on."""
FINAL: Final = ("warn", "rollback", "stop")  # which always come off, so that nothing after them is ever tried
NAMES: Final = {"mean of the skills": "mean", "KL to the base": "kl"}
"""What `on_violation` calls the limits that are no probe's, by what the gate calls them."""
DEFAULT: Final = "default"


def _chain(value: list[Action]) -> list[Action]:
    if not value:
        raise ValueError("it names no action: write at least one, as in `[retry, rollback]`")
    twice = next((action for action in value if value.count(action) > 1), None)
    if twice == "retry":
        raise ValueError(
            "`retry` stands in it twice: write it once, `forgetting.retry.times` says how often it is tried"
        )
    if twice:
        raise ValueError(f"`{twice}` stands in it twice: write it once")
    last = next((action for action in value[:-1] if action in FINAL), None)
    if last:
        after = value[value.index(last) + 1]
        what = f"`{after}` can never act, because `{last}` before it always does"
        raise ValueError(f"{what}: write `{last}` last, or leave `{after}` out")
    return value


def _named(value: dict[str, Action | list[Action]]) -> dict[str, Action | list[Action]]:
    if not value:
        raise ValueError("it names no probe: write an action for all, such as stop, or one for each probe by name")
    return value


def _shape(value: object) -> str:
    return "by name" if isinstance(value, Mapping) else "in order" if isinstance(value, list | tuple) else "one"


One = Annotated[
    Annotated[Action, Tag("one")] | Annotated[list[Action], AfterValidator(_chain), Tag("in order")],
    Discriminator(_shape),
]
OnViolation = Annotated[
    Annotated[Action, Tag("one")]
    | Annotated[list[Action], AfterValidator(_chain), Tag("in order")]
    | Annotated[dict[str, One], AfterValidator(_named), Tag("by name")],
    Discriminator(_shape),
]
Written: TypeAlias = Action | list[Action] | dict[str, Action | list[Action]]
Chain: TypeAlias = tuple[Action, ...]


class Retry(BaseModel):
    """What an attempt changes against the recipe: the second has each value times its factor, the third times its
    square, and so on."""

    model_config = ConfigDict(extra="forbid")

    times: int = Field(default=1, ge=1, le=10, description="How often the stage is tried again, at most.")
    replay: float = Field(
        default=1.0, ge=1, allow_inf_nan=False, description="Factor of the share of replayed rows, at least 1."
    )
    learning_rate: float = Field(
        default=1.0, gt=0, le=1, description="Factor of the learning rate, above 0 and at most 1."
    )
    max_steps: float = Field(
        default=1.0, gt=0, le=1, description="Factor of the number of steps, or of epochs, above 0 and at most 1."
    )

    @property
    def changes(self) -> bool:
        """Whether any factor does something."""
        return any(factor != 1 for factor in (self.replay, self.learning_rate, self.max_steps))


class Interpolate(BaseModel):
    """How a share of a stage's update is taken."""

    model_config = ConfigDict(extra="forbid")

    shape: Literal["flat", "lines"] = Field(
        default="flat", description="flat: the same share in every layer; lines: a share that grows with depth (LiNeS)."
    )


def chains(written: Written) -> dict[str, Chain]:
    """Every chain that a recipe names, by probe; under `default` the one for all others."""
    if isinstance(written, dict):
        return {DEFAULT: ("warn",), **{name: _whole(one) for name, one in written.items()}}
    return {DEFAULT: _whole(written)}


def _whole(one: Action | list[Action]) -> Chain:
    """With what happens where none of it helps: after `retry` the run stops, and no share is a rollback."""
    chain = tuple(one) if isinstance(one, list) else (one,)
    return (*chain, "stop") if chain[-1] == "retry" else (*chain, "rollback") if chain[-1] == "interpolate" else chain


def used(written: Written) -> set[Action]:
    """Every action that stands in some chain."""
    return {action for chain in chains(written).values() for action in chain}


def of(written: Written, violated: Iterable[str]) -> dict[str, Chain]:
    """The chain of each violated limit, by the name that the gate has for it."""
    known = chains(written)
    return {name: known.get(NAMES.get(name, name), known[DEFAULT]) for name in violated}


def only_warns(written: Written, limit: str) -> bool:
    """Whether nothing but a warning follows where this limit is violated, and more where others are.

    Args:
        limit: by the name that the gate has for it.
    """
    return isinstance(written, dict) and of(written, [limit])[limit] == ("warn",)


def some_only_warn(written: Written) -> bool:
    """Whether there are such limits."""
    return isinstance(written, dict) and ("warn",) in chains(written).values()


def strictest(found: Iterable[Chain]) -> Chain:
    """Of several chains the one whose first action is strictest; of those with the same first, by the next one."""
    return max(found, key=lambda chain: [STRICTNESS.index(action) for action in chain])


def unknown(written: Written, probes: Iterable[str]) -> list[str]:
    """The names in `on_violation` that are no probe's."""
    known = {DEFAULT, *NAMES.values(), *probes}
    return sorted(set(written) - known) if isinstance(written, dict) else []


def shown(written: Written) -> str:
    """As a recipe has it, for a sentence."""
    if isinstance(written, dict):
        return f"{{{', '.join(f'{name}: {shown(one)}' for name, one in written.items())}}}"
    return f"[{', '.join(written)}]" if isinstance(written, list) else written
