"""What an attempt at a stage changes against the recipe, by the factors of `forgetting.retry`. No torch."""

from __future__ import annotations

from typing import Any, Final

from align.forgetting.action_keys import Retry
from align.recipe import training_arguments
from align.recipe.plan import StagePlan

MOST_REPLAY: Final = 0.9
"""More replayed rows than nine in ten leave too little of the task to learn."""
Changed = dict[str, tuple[float, float]]
"""By the name of a value: what the recipe has, and what the attempt has."""


def changed(plan: StagePlan, retry: Retry | None, number: int) -> Changed:
    """What an attempt at a stage changes; only what then differs.

    Args:
        number: of the attempt; 1 trains as the recipe says, attempt n with every value times its factor to the n - 1.
    """
    if retry is None or number == 1:
        return {}
    power = number - 1
    found = {**_replay(plan, retry.replay**power), **_rate(plan, retry.learning_rate**power)}
    found |= _steps(plan, retry.max_steps**power)
    return {name: (before, after) for name, (before, after) in found.items() if before != after}


def training(plan: StagePlan, found: Changed) -> dict[str, Any]:
    """The training arguments of an attempt."""
    return {**plan.training, **{name: after for name, (_, after) in found.items() if name != "replay"}}


def sentence(found: Changed) -> str:
    """`replay 0.4 instead of 0.2 and learning_rate 0.0005 instead of 0.001`."""
    parts = [f"{name} {after:g} instead of {before:g}" for name, (before, after) in found.items()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _replay(plan: StagePlan, factor: float) -> Changed:
    """None of a stage that replays nothing: a factor of nothing is nothing."""
    if plan.replay is None or factor == 1:
        return {}
    ratio = plan.replay.ratio
    return {"replay": (ratio, max(ratio, min(MOST_REPLAY, round(ratio * factor, 6))))}


def _rate(plan: StagePlan, factor: float) -> Changed:
    rate = _value(plan, "learning_rate")
    return {} if rate is None else {"learning_rate": (rate, rate * factor)}


def _steps(plan: StagePlan, factor: float) -> Changed:
    steps, epochs = _value(plan, "max_steps"), _value(plan, "num_train_epochs")
    if steps is not None and steps > 0:
        return {"max_steps": (int(steps), max(1, round(steps * factor)))}
    return {} if epochs is None else {"num_train_epochs": (epochs, epochs * factor)}


def _value(plan: StagePlan, name: str) -> float | None:
    """A number among the training arguments, given or TRL's own; None where the stage knows no such argument."""
    config = plan.program.stage.arguments
    known = training_arguments.known(config) if config else {}
    value = plan.training.get(name, known[name].default if name in known else None)
    return value if isinstance(value, int | float) else None
