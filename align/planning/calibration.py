"""How long an update of each stage takes on this machine: the recipe is run for a few of them, and thrown away."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from align.recipe import load as recipes
from align.recipe.plan import Loaded, StagePlan
from align.run_folder.paths import RunDir
from align.runner import loop
from align.runner.options import Options
from align.runner.progress import Watcher

UPDATES = 4  # of a stage that samples nothing; the first is not counted
ROLLOUTS = 2  # of one that samples answers; the first is not counted


def seconds(path: Path, overrides: Sequence[str], loaded: Loaded, watcher: Watcher) -> dict[str, float]:
    """Seconds of one update of each stage; without those of which there were too few to tell.

    Args:
        path, overrides: of the recipe.
        loaded: the recipe as it was read from them.
        watcher: shows what goes on.

    Raises:
        AlignError: a stage fails, as it would in a run.
    """
    short = [f"stages.{plan.id}.training.{key}={value}" for plan in loaded.stages for key, value in _few(plan).items()]
    whole = [*overrides, *short, "forgetting={probes: none}", "trackers=[]", "notify=null"]
    with tempfile.TemporaryDirectory() as temporary:
        run = RunDir(Path(temporary) / "run")
        loop.Run(recipes.load(path, whole), Options(), run, watcher).execute()
        found = {plan.id: _of_an_update(run.stage(plan.id).metrics, _first(plan)) for plan in loaded.stages}
    return {id: each for id, each in found.items() if each is not None}


def _few(plan: StagePlan) -> dict[str, int]:
    count = ROLLOUTS * _first(plan) if plan.program.stage.samples else UPDATES
    limit = plan.training.get("max_steps", -1)
    return {"max_steps": min(count, limit) if isinstance(limit, int) and limit > 0 else count, "logging_steps": 1}


def _first(plan: StagePlan) -> int:
    """The updates that are not counted: the first, or those of the first rollout."""
    if not plan.program.stage.samples:
        return 1
    batches = plan.training.get("steps_per_generation") or plan.global_batch[1]
    return max(1, int(batches) // plan.global_batch[1]) * int(plan.training.get("num_iterations", 1))


def _of_an_update(metrics: Path, first: int) -> float | None:
    """From the times of steps in metrics.jsonl."""
    if not metrics.is_file():
        return None
    times: dict[int, float] = {}
    for text in metrics.read_text(encoding="utf-8").splitlines():
        entry = json.loads(text)
        if isinstance(entry.get("step"), int) and "time" in entry:
            times[entry["step"]] = entry["time"]
    last = max(times, default=0)
    return (times[last] - times[first]) / (last - first) if first in times and last > first else None
