"""What is seldom meant, and stops no run: rates far from the usual, preferences before answers, no held-out rows. No
torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from align.data import template
from align.policy.base import LAB, Base
from align.preflight.rows_that_fit import StageRows
from align.recipe.pipeline import BASE
from align.recipe.plan import StagePlan

FAR: Final = 10
"""A rate that is so many times a stage's default, or such a part of it, is far from the usual."""

ENOUGH: Final = 200
"""Rows of which some can be held out."""

_PREFERENCES: Final = ("dpo", "kto")


def notes(plan: StagePlan, rows: StageRows, base: Base) -> Iterator[str]:
    """Notes on a stage of a real model; the lab's is trained otherwise than any other."""
    if base.name == LAB:
        return
    yield from _rate(plan)
    program = plan.program.name
    if program in _PREFERENCES and plan.policy == BASE and base.path is not None and template.find(base.path) is None:
        yield (
            f"it starts from a base without a chat template, which may never have learnt to answer: put an sft stage "
            f"before {program}"
        )
    if plan.keys.eval_data is None and not plan.program.stage.samples and len(rows.train) >= ENOUGH:
        yield "no rows are held out, so that overfitting would not be seen: `eval_data: 0.05`"


def _rate(plan: StagePlan) -> Iterator[str]:
    """A learning rate far from the default of the stage for weights of that kind."""
    defaults = plan.program.stage.defaults
    family = "full" if plan.trains_base else "adapter"
    usual = {**defaults.get("all", {}), **defaults.get(family, {})}.get("learning_rate")
    rate = plan.keys.training.get("learning_rate")
    if not isinstance(rate, int | float) or not isinstance(usual, float) or not rate:
        return
    if rate > FAR * usual:
        far = f"{rate / usual:,.0f} times"
    elif rate < usual / FAR:
        far = f"1/{usual / rate:,.0f} of"
    else:
        return
    yield f"the learning rate {rate:g} is {far} the default for {plan.method_keys.method}, {usual:g}"
