"""Whether a stage kept to its budgets: measured figures against fixed ones, beside the limits on what changed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from align.forgetting import budget_keys
from align.forgetting.budget_keys import Budgets
from align.forgetting.measurements import Measurement
from align.forgetting.rounding import number
from align.forgetting.statistics import wilson
from align.run_folder.decisions import BudgetCrossed


@dataclass(frozen=True)
class Costs:
    """What a stage took; None where it is not known.

    Attributes:
        peak_memory_bytes: of the GPU where there is one, else of the process.
        seconds: wall time of training and measuring.
        latency: median seconds of a greedy answer.
        answers: how many were timed.
    """

    peak_memory_bytes: int | None = None
    seconds: float | None = None
    latency: float | None = None
    answers: int = 0


@dataclass(frozen=True)
class Judged:
    """The budgets of one stage.

    Attributes:
        crossed: with a sentence for each in `sentences`.
        open: sentences on budgets that could not be checked.
    """

    crossed: tuple[BudgetCrossed, ...]
    sentences: tuple[str, ...]
    open: tuple[str, ...]


def judge(budgets: Budgets, after: Measurement | None, costs: Costs) -> Judged:
    """Hold the figures of a stage against its budgets.

    A budget is crossed where the figure itself is beyond it: unlike a limit it does not ask how sure the figure is.
    Accuracy and perplexity are those of the gate's items.

    Args:
        after: None for a stage that hands on no policy, or where nothing is measured.
    """
    found = [*_of_probes(budgets, after), *_of_costs(budgets, costs)] if after else list(_of_costs(budgets, costs))
    beyond = [(crossed, text) for crossed, text in found if crossed is not None]
    return Judged(
        tuple(crossed for crossed, _ in beyond),
        tuple(text for _, text in beyond),
        tuple(text for crossed, text in found if crossed is None and text),
    )


Found = tuple[BudgetCrossed | None, str]


def _of_probes(budgets: Budgets, after: Measurement) -> Iterator[Found]:
    for probe, info in after.probes.items():
        perplexity = info.metric == "perplexity"
        limit = _limit(budgets.perplexity if perplexity else budgets.accuracy, probe)
        if limit is None or not after.has("gate", probe):
            continue
        score = after.score("gate", probe)
        if perplexity and not score <= limit:
            figure = f"a perplexity of {score:.3g}" if math.isfinite(score) else "no finite perplexity"
            text = f"{probe} has {figure}, its budget is at most {limit:g}"
            yield BudgetCrossed(budget="perplexity", probe=probe, value=number(score), limit=limit), text
        elif not perplexity and score < limit:
            n = len(after.items["gate", probe])
            low, high = wilson(score, n)
            sure = f"{n} items, 95 % interval {low:.3g} to {high:.3g}"
            text = f"{probe} has an accuracy of {score:.3g} ({sure}), its budget is at least {limit:g}"
            yield BudgetCrossed(budget="accuracy", probe=probe, value=number(score), limit=limit), text
    if budgets.perplexity is not None and not any(info.metric == "perplexity" for info in after.probes.values()):
        yield None, "no probe measures a perplexity, so its budget was not checked"


def _limit(budget: float | dict[str, float] | None, probe: str) -> float | None:
    return budget.get(probe) if isinstance(budget, dict) else budget


def _of_costs(budgets: Budgets, costs: Costs) -> Iterator[Found]:
    if budgets.peak_memory is not None:
        most = budget_keys.memory(budgets.peak_memory)
        used = costs.peak_memory_bytes
        if used is None:
            yield None, "the peak memory is not known, so its budget was not checked"
        elif used > most:
            text = f"the stage took {_memory(used, budgets.peak_memory)} of memory, its budget is {budgets.peak_memory}"
            yield BudgetCrossed(budget="peak_memory", value=used, limit=most), text
    if budgets.wall_time is not None:
        longest = budget_keys.seconds(budgets.wall_time)
        if costs.seconds is not None and costs.seconds > longest:
            took = _time(costs.seconds, budgets.wall_time)
            text = f"the stage took {took}, its budget is {_written(budgets.wall_time)}"
            yield BudgetCrossed(budget="wall_time", value=number(costs.seconds), limit=longest), text
    if budgets.latency is not None:
        longest = budget_keys.seconds(budgets.latency)
        if costs.latency is None:
            yield None, "no answer was timed, so the budget of the latency was not checked"
        elif costs.latency > longest:
            took = f"an answer took {_time(costs.latency, budgets.latency)} (median of {costs.answers})"
            text = f"{took}, its budget is {_written(budgets.latency)}"
            yield BudgetCrossed(budget="latency", value=number(costs.latency), limit=longest), text


def _memory(used: int, budget: str) -> str:
    """In the unit of the budget."""
    unit = next(unit for unit in budget_keys.BYTES if budget.strip().lower().lstrip("0123456789. ") == unit.lower())
    return f"{_figures(used / budget_keys.BYTES[unit])} {unit}"


def _time(took: float, budget: float | str) -> str:
    """In the first unit of the budget."""
    unit = budget_keys.first_unit(budget)
    return f"{_figures(took / budget_keys.SECONDS[unit])} {unit}"


def _figures(value: float) -> str:
    """Three significant digits, whole numbers in full."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _written(budget: float | str) -> str:
    return budget if isinstance(budget, str) else f"{budget:g} s"
