"""What the gate says of an attempt at a stage, from what is stored of it; nothing is measured or trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

from align.forgetting import gate, measurements
from align.forgetting.budgets import Costs
from align.forgetting.distances import TaskKl
from align.forgetting.judgement import MEAN, judge
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import Measurement
from align.forgetting.records import Latency
from align.forgetting.rounding import number
from align.recipe.retries import Changed
from align.run_folder import reading
from align.run_folder.decisions import Attempt, Decision, Figure
from align.run_folder.interpolation import Gain
from align.run_folder.paths import RunDir
from align.run_folder.stage_dir import StageDir


def verdict(run: RunDir, stage: str, here: StageDir, keys: ForgettingKeys) -> Decision | None:
    """What the gate decides on what was measured in a folder; None where there is nothing to decide on.

    Its action is the first that the recipe wants done: it is final where that is `continue` or `stop`.

    Raises:
        AlignError: the measurements are damaged or hold different items, or a limit names a probe that is not measured.
    """
    if not (here.measurements / "summary.json").is_file():
        return None if keys.budgets is None else gate.decide_on_costs(stage, keys, _costs(here))
    base, after = measurements.load(run.base_measurements), measurements.load(here.measurements)
    return gate.decide(stage, base, after, keys, _costs(here), reading.optional(here.task_kl, TaskKl))


def attempt(run: RunDir, here: StageDir, keys: ForgettingKeys, found: Decision, changed: Changed) -> Attempt:
    """A line for the table of the attempts."""
    base, after = measurements.load(run.base_measurements), measurements.load(here.measurements)
    fell = [one for name, one in judge(base, after, "gate", keys).items() if name != MEAN and _is_skill(base, name)]
    worst = min(fell, key=lambda one: one.after - one.before, default=None)
    return Attempt(
        number=found.attempt,
        share=found.share,
        changed=changed,
        gain=_gain(base, after) or _validation(here),
        worst=Figure(name=worst.probe, before=worst.before, after=worst.after) if worst else None,
        violated=[violation.probe for violation in found.violations],
    )


def gain_kept(run: RunDir, gains: Sequence[Gain]) -> str:
    """How much of what had been gained most a share of the update keeps, on the report's items: of the task, where a
    probe measures it."""
    if not gains:
        return "no probe had got better, so there is no gain to keep"
    probes = measurements.load(run.base_measurements).probes
    of_task = [gain for gain in gains if probes[gain.probe].kind == "task"]
    one = max(of_task or gains, key=lambda gain: gain.trained - gain.base)
    scores = (_score(score) for score in (one.base, one.trained, one.decided))
    figures = "on the report's items {} was {} before, is {} as trained and {} with this share".format(
        one.probe, *scores
    )
    return f"{figures}: {(one.decided - one.base) / (one.trained - one.base):.0%} of the gain is kept"


def _gain(base: Measurement, after: Measurement) -> Figure | None:
    """The first probe of the task that has answers."""
    for probe, info in base.probes.items():
        if info.kind == "task" and info.metric == "accuracy" and base.has("gate", probe):
            return Figure(name=probe, before=base.score("gate", probe), after=after.score("gate", probe))
    return None


def _validation(here: StageDir) -> Figure | None:
    """The first and the last validation loss."""
    losses = [row["eval_loss"] for row in reading.lines(here.metrics) if isinstance(row.get("eval_loss"), int | float)]
    if not losses:
        return None
    return Figure(name="eval loss", before=number(losses[0]), after=number(losses[-1]))


def _is_skill(base: Measurement, probe: str) -> bool:
    return base.probes[probe].metric == "accuracy" and base.probes[probe].kind == "skill"


def _score(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _costs(here: StageDir) -> Costs:
    outcome = reading.outcome(here)
    timed = reading.optional(here.latency, Latency) or Latency()
    if outcome is None:
        return Costs(latency=timed.seconds, answers=timed.answers)
    return Costs(
        peak_memory_bytes=outcome.peak_memory_bytes,
        seconds=outcome.seconds + outcome.measure_seconds,
        latency=timed.seconds,
        answers=timed.answers,
    )
