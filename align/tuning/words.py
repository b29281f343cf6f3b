"""A tuning in words and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from align.recipe.plan import StagePlan
from align.tuning import space
from align.tuning.figures import Measure
from align.tuning.result import Result
from align.tuning.space import Dimension, Values
from align.tuning.study import Asked, Tried

SKILLS: Final = 3  # that are named
NAMES: Final = {"learning_rate": "learning rate", "rank": "rank", "replay": "replay"}


def value(name: str, number: float) -> str:
    """A value as a recipe writes it."""
    return f"{number:g}" if name != "learning_rate" else f"{number:.3g}"


def values(found: Values) -> str:
    """`learning rate 0.003, rank 16`"""
    return ", ".join(f"{NAMES[name]} {value(name, number)}" for name, number in found.items())


def plan(asked: Asked, measure: Measure, over: Sequence[Dimension], whole: int | None) -> list[str]:
    """What is going to be tried, and by what it is judged."""
    ranges = ", ".join(f"{NAMES[d.name]} {value(d.name, d.low)} to {value(d.name, d.high)}" for d in over)
    of = f" of its {whole:,}" if whole and whole != asked.steps else ""
    outside = [d for d in over if not d.low <= d.own <= d.high]
    own = [f"the recipe's {NAMES[d.name]} {value(d.name, d.own)} lies outside, and is not tried" for d in outside]
    return [f"trials of '{asked.stage}': {asked.steps:,}{of} steps each, {ranges}", *own, judged_by(measure)]


def judged_by(measure: Measure) -> str:
    """What the two figures are."""
    gain = " and ".join(measure.gain)
    what = f"the mean of {gain} on the gate's items" if len(measure.gain) > 1 else f"{gain} on the gate's items"
    gained = what if measure.gain else "the share of held-out tokens, or pairs, that come out right"
    if not measure.skills:
        return f"gain: {gained}; no skill is measured, so nothing is known of what is forgotten"
    more = f" and {len(measure.skills) - SKILLS} more" if len(measure.skills) > SKILLS else ""
    lost = f"how far the mean of {', '.join(measure.skills[:SKILLS])}{more} fell on the gate's items"
    return f"gain: {gained}; forgotten: {lost}; the best has the largest difference"


def told(one: Tried, steps: int) -> str:
    """A line on a trial that is over."""
    record, last = one.record, one.last
    head = f"trial {record.number}: {values(record.values)}"
    if record.state == "failed":
        return f"{head}: failed: {record.fault}"
    if last is None:
        return f"{head}: nothing was measured"
    lost = "" if last.forgotten is None else f", forgotten {last.forgotten:+.3f}"
    ended = "" if record.state == "done" else f"; ended early, after {last.step} of {steps} steps"
    return f"{head}: gain {last.gain:.3f}{lost}{ended}"


def head(over: Sequence[Dimension]) -> tuple[str, ...]:
    """The head of the table."""
    return ("trial", *(NAMES[one.name] for one in over), "steps", "gain", "forgotten", "difference", "")


def row(one: Tried, over: Sequence[Dimension], found: Result) -> tuple[str, ...]:
    """The cells of a trial."""
    record, last = one.record, one.last
    cells = [str(record.number), *(value(d.name, record.values[d.name]) for d in over)]
    if last is None:
        return (*cells, "", "", "", "", record.state)
    lost = "" if last.forgotten is None else f"{last.forgotten:.3f}"
    return (
        *cells,
        f"{last.step:,}",
        f"{last.gain:.3f}",
        lost,
        f"{last.value:.3f}",
        _standing(record.number, one, found),
    )


def _standing(number: int, one: Tried, found: Result) -> str:
    if number == found.best.record.number:
        return "best"
    if one.record.state == "done" and number in found.front:
        return "on the front"
    return "" if one.record.state == "done" else one.record.state


def document(found: Result, plan: StagePlan, recipe: str) -> dict[str, Any]:
    """The whole of it for `--json`."""
    trials = [
        {
            "trial": one.record.number,
            "values": dict(one.record.values),
            "set": list(space.texts(one.record.values, plan)),
            "state": one.record.state,
            "seconds": one.record.seconds,
            "fault": one.record.fault or None,
            "steps": one.last.step if one.last else None,
            "gain": one.last.gain if one.last else None,
            "forgotten": one.last.forgotten if one.last else None,
        }
        for one in found.trials
    ]
    best = found.best.record.number
    return {"stage": plan.id, "best": best, "front": list(found.front), "recipe": recipe, "trials": trials}
