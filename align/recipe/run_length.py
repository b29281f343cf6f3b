"""How many steps a stage will make, as far as it can be told before it runs, and what of its settings does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from align.recipe import training_arguments
from align.recipe.plan import StagePlan


def steps(plan: StagePlan, rows: int, processes: int) -> int | None:
    """The updates of a stage; None where only the run can tell.

    Args:
        rows: that it trains on in an epoch, replayed ones included; of KTO, answers.
    """
    get = _settings(plan)
    limit = get("max_steps")
    if isinstance(limit, int) and limit > 0:
        return limit
    if plan.program.stage.arguments is None or get("packing"):
        return None
    per_device, accumulation = plan.global_batch
    if plan.program.stage.samples:
        passes = get("steps_per_generation") or accumulation
        prompts = per_device * passes * processes // (get("num_generations") or 1)
        epoch = -(-rows // max(1, prompts)) * passes * get("num_iterations") // accumulation
    else:
        epoch = -(-rows // (per_device * accumulation * processes))
    return max(1, math.ceil(float(get("num_train_epochs")) * int(epoch)))


def notes(plan: StagePlan, rows: int, held_out: int, processes: int) -> Iterator[str]:
    """What comes later than the run's end.

    Args:
        rows, held_out: that it trains on in an epoch, and that it is evaluated on.
    """
    get, count = _settings(plan), steps(plan, rows, processes)
    if count is None or count < 2:  # of one step in all the run leaves the warm-up out, and says so
        return
    warm_up = get("warmup_steps") or 0  # none with the schedule `constant`, beside which it is refused
    if _of(warm_up, count) >= count:
        reached = (count - 1) / _of(warm_up, count)
        text = f"the warm-up takes {_of(warm_up, count)} steps but the run has {count}, so the learning rate reaches"
        yield f"{text} {100 * reached:.0f} % of the requested value: lower warmup_steps"
    for name in ("eval_steps", "eval_delay") if held_out and get("eval_strategy") in ("steps", "no", None) else ():
        if (get(name) or 0) > count:
            yield f"`{name}: {get(name)}` is more than the {count} steps of the run: held-out rows are never evaluated"


def _of(share: float, count: int) -> int:
    """A number of steps, or a share of them, as transformers reckons it."""
    return int(share) if share >= 1 else math.ceil(share * count)


def _settings(plan: StagePlan) -> Callable[[str], Any]:
    """What an argument is set to."""
    config = plan.program.stage.arguments
    known = training_arguments.known(config) if config else {}
    return lambda name: plan.training.get(name, known[name].default if name in known else None)
