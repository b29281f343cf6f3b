"""The largest share of an update that keeps every probe within its limit, on a descending grid. No torch.

A limit that is only warned of is not looked at: where it is broken, the recipe wants the policy as it is.

Drops need not be monotone in the share, so no bisection: the shares are tried from the top, and the first that passes
is the largest of the grid that does. They are judged by the figures themselves. A gate asks whether a limit is surely
broken; here a policy is looked for, and one that is over a limit by its own figures is none to go on with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from align.errors import one_of
from align.forgetting import action_keys
from align.forgetting.distances import KL, TaskKl
from align.forgetting.gate import finite
from align.forgetting.judgement import MEAN, judge
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import Measurement
from align.forgetting.statistics import PerplexityChange
from align.run_folder.interpolation import Gain, Shape, Tried

SLACK = 1e-9  # of a figure, for what floating point makes of a drop that is exactly at its limit


def largest(shares: Iterable[float], judged: Callable[[float], Tried]) -> list[Tried]:
    """The shares as far as they were tried, in order; where one is within the limits it is the last."""
    tried: list[Tried] = []
    for share in shares:
        tried.append(judged(share))
        if tried[-1].within:
            break
    return tried


def judged(
    share: float, base: Measurement, after: Measurement, keys: ForgettingKeys, distance: TaskKl | None = None
) -> Tried:
    """What was measured at a share held against every limit of which more than a warning follows, on the gate's items.

    Args:
        distance: the KL to the base, where it has a limit.

    Raises:
        AlignError: the two hold different items.
    """
    found: list[tuple[float, Tried]] = []
    for name, finding in judge(base, after, "gate", keys).items():
        change, limit = finding.change, finding.limit
        if action_keys.only_warns(keys.on_violation, name):
            continue
        if isinstance(change, PerplexityChange):
            used = _used(change.ratio - 1, limit - 1)
            found.append((used, _tried(share, name, "perplexity", change.ratio, limit)))
        else:
            found.append((_used(-change.delta, limit), _tried(share, name, "accuracy", 0.0 - change.delta, limit)))
    max_kl = None if action_keys.only_warns(keys.on_violation, KL) else keys.max_kl
    if max_kl is not None and distance is not None and distance.judged is not None:
        kl = math.inf if distance.judged.kl is None else distance.judged.kl
        found.append((_used(kl, max_kl), _tried(share, KL, "kl", kl, max_kl)))
    if not found:
        return Tried(share=share, within=True)
    worst = max(found, key=lambda one: one[0])[1]
    return worst.but(within=all(one.within for _, one in found))


def _used(figure: float, limit: float) -> float:
    """The part of a limit that is used up; infinite of what is not finite."""
    if not math.isfinite(figure):
        return math.inf
    return figure / limit if limit > 0 else math.copysign(math.inf, figure) if abs(figure) > SLACK else 0.0


def _tried(share: float, name: str, metric: str, figure: float, limit: float) -> Tried:
    within = math.isfinite(figure) and figure <= limit + SLACK
    return Tried.model_validate(
        {"share": share, "worst": name, "metric": metric, "figure": finite(figure), "limit": limit, "within": within}
    )


def gains(base: Measurement, trained: Measurement, decided: Measurement) -> tuple[Gain, ...]:
    """The accuracies that the whole update had raised, and what they are at the share that is kept.

    On the report's items, since those of the gate have chosen the share.
    """
    found = []
    for probe, info in base.probes.items():
        if info.metric == "accuracy" and all(one.has("report", probe) for one in (base, trained, decided)):
            scores = [one.score("report", probe) for one in (base, trained, decided)]
            if scores[1] > scores[0]:
                found.append(Gain(probe=probe, base=scores[0], trained=scores[1], decided=scores[2]))
    return tuple(found)


def sentence(tried: list[Tried], shape: Shape, keys: ForgettingKeys) -> str:
    """What was found, for the decision and the report."""
    but = ", but for those that only warn" if action_keys.some_only_warn(keys.on_violation) else ""
    beyond = [one for one in tried if not one.within]
    over = f"{_shares(beyond)} {'does' if len(beyond) == 1 else 'do'} not" if beyond else ""
    if tried and tried[-1].within:
        last = tried[-1]
        words = f"a share of {last.share:g} of the update ({shape}) keeps every probe within its limit{but}"
        nearest = f"; {over}: at {beyond[-1].share:g} {_worst(beyond[-1])}" if beyond else ""
        return words + nearest
    words = f"no share of the update ({shape}) from {tried[0].share:g} down to {tried[-1].share:g} keeps every probe "
    return words + f"within its limit{but}: at {tried[-1].share:g} {_worst(tried[-1])}"


def _shares(tried: list[Tried]) -> str:
    return one_of([f"{one.share:g}" for one in tried]).replace(" or ", " and ")


def _worst(one: Tried) -> str:
    if one.worst is None or one.limit is None:
        return "nothing was judged"
    if one.metric == "perplexity":
        figure = "is not finite" if one.figure is None else f"is x{one.figure:.3g}"
        return f"the perplexity of {one.worst} {figure}, where x{one.limit:.3g} is tolerated"
    figure = "is not finite" if one.figure is None else f"is {one.figure:.3g}"
    if one.metric == "kl":
        return f"{one.worst} {figure}, where {one.limit:.3g} is tolerated"
    of = f"the {MEAN}" if one.worst == MEAN else one.worst
    return f"the drop of {of} {figure}, where {one.limit:.3g} is tolerated"
