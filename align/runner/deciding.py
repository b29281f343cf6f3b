"""The decision on a stage, from what is stored of it; nothing is measured or trained."""

from __future__ import annotations

from align.forgetting import gate, measurements
from align.forgetting.budgets import Costs
from align.forgetting.distances import TaskKl
from align.forgetting.keys import ForgettingKeys
from align.forgetting.records import Latency
from align.run_folder import files, reading
from align.run_folder.paths import RunDir, StageDir
from align.run_folder.records import Decision


def decide(run: RunDir, stage: str, keys: ForgettingKeys) -> tuple[Decision | None, bool]:
    """The decision that stands in the stage's folder, or a new one where there is none or it has other limits.

    Returns: the decision, None where there is nothing to decide on; and whether it is new.

    Raises:
        AlignError: the measurements are damaged or hold different items, or a limit names a probe that is not measured.
    """
    here = run.stage(stage)
    measured = (here.measurements / "summary.json").is_file()
    if not measured and keys.budgets is None:
        here.decision.unlink(missing_ok=True)  # of budgets that the recipe no longer has
        return None, False
    known = reading.whole(here.decision, Decision)
    if known is not None and known.thresholds == keys.thresholds():
        return known, False
    if measured:
        base, after = measurements.load(run.base_measurements), measurements.load(here.measurements)
        distance = reading.optional(here.task_kl, TaskKl)
        decision = gate.decide(stage, base, after, keys, _costs(here), distance)
    else:
        decision = gate.decide_on_costs(stage, keys, _costs(here))
    files.write_json(here.decision, decision.model_dump(mode="json"))
    return decision, True


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
