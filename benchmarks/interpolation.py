"""Shares of an update between the base and a model that was trained without replay: `flat` against `lines`.

    python -m benchmarks.interpolation                # three seeds, full and LoRA; about nine CPU minutes
    python -m benchmarks.interpolation --seeds 7 --methods lora
    options: --steps N, --shares N (from 0 to 1, both included), --runs FOLDER (kept, and gone on with)

SFT on the lab's help desk, in which the model learns the task and forgets skills. At every share the task (its answers
that are correct) and the mean of the ten skills are measured on `report` items, which decide nothing here. Gain is the
task's score, loss the drop of the mean. The area is that under the front, which is the most gain that a loss of at most
x leaves, over x from no loss to that of the whole update, divided by this loss and by the whole update's gain: 1 would
be all of the gain for nothing. CPU seconds are of measuring one share, with one thread.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from align.forgetting import measurements
from align.forgetting.judgement import is_skill
from align.forgetting.measurements import Measurement
from align.run_folder import files, reading
from align.run_folder.interpolation import Shape
from align.run_folder.paths import RunDir
from align.run_folder.records import Ticket

STAGE, TASK = "sft", "helpdesk correct"
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({"method": "full"}, 1e-3),
    "lora": ({"method": "lora", "lora": {"r": 16, "alpha": 32}}, 5e-3),
}


@dataclass(frozen=True)
class Point:
    """A share, the score of the task, the mean of the skills and its drop from the base."""

    share: float
    gain: float
    skills: float
    loss: float


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--shares", type=int, default=11)
    parser.add_argument("--runs", type=Path)
    options = parser.parse_args()
    found: dict[tuple[str, int, Shape], list[Point]] = {}
    print("| method | seed | whole update: task, skills | area flat | area lines | CPU s a share |")
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        for method in options.methods:
            for seed in options.seeds:
                folder = (options.runs or Path(temporary)) / f"{method}-{seed}"
                train(method, seed, options.steps, folder)
                started, count = time.process_time(), 0
                for shape in get_args(Shape):
                    points, made = curve(folder, shape, options.shares)
                    found[method, seed, shape], count = points, count + made
                cost = (time.process_time() - started) / max(count, 1)
                whole = found[method, seed, "flat"][-1]
                areas = " | ".join(f"{area(found[method, seed, shape]):.3f}" for shape in get_args(Shape))
                figures = f"{whole.gain:.3f}, {whole.skills:.3f}"
                print(
                    f"| {method} | {seed} | {figures} | {areas} | {f'{cost:.1f}' if count else 'stored'} |", flush=True
                )
    for method in options.methods:
        print(f"\n{method}, mean of {len(options.seeds)} seeds: task, skills\n")
        print("\n".join(by_share({seed: found[method, seed, "flat"] for seed in options.seeds},
                                 {seed: found[method, seed, "lines"] for seed in options.seeds})))  # fmt: skip


def train(method: str, seed: int, steps: int, folder: Path) -> None:
    """SFT without replay, unless the folder holds it."""
    keys, rate = METHODS[method]
    recipe = {
        "name": f"interpolation_{method}",
        "seed": seed,
        "model": {"base": "lab", "attn_implementation": "eager"},
        "parameterization": keys,
        "forgetting": {"probes": "lab", "answers": False},
        "stages": {
            STAGE: {
                "data": "lab/helpdesk",
                "training": {"learning_rate": rate, "max_steps": steps, "per_device_train_batch_size": 16},
            }
        },
    }
    file = folder.with_suffix(".yaml")
    files.write_text(file, yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "align", "run", str(file), "--run-dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def curve(folder: Path, shape: Shape, count: int) -> tuple[list[Point], int]:
    """Evenly spaced shares from 0 to 1, and how many of them were measured now; the run itself measured the ends."""
    run = RunDir(folder)
    base, whole = (measurements.load(at) for at in (run.base_measurements, run.stage(STAGE).measurements))
    inner = [round(i / (count - 1), 6) for i in range(1, count - 1)]
    missing = [share for share in inner if not (place(run, shape, share) / "summary.json").is_file()]
    if missing:
        measure(run, shape, missing)
    stored = [measurements.load(place(run, shape, share)) for share in inner]
    ends = [(0.0, base), *zip(inner, stored, strict=True), (1.0, whole)]
    return [point(share, base, after) for share, after in ends], len(missing)


def place(run: RunDir, shape: Shape, share: float) -> Path:
    return run.root / "curve" / shape / f"{share:g}"


def measure(run: RunDir, shape: Shape, wanted: Sequence[float]) -> None:
    """Measure the report's half of the probes at shares of the stage's update."""
    from align.forgetting.bench import Bench
    from align.forgetting.measure import measure as measured
    from align.policy.load import native_bf16
    from align.worker import execute, interpolate

    ticket = Ticket.model_validate(files.read_json(run.stage(STAGE).ticket))
    outcome = reading.outcome(run.stage(STAGE))
    assert outcome is not None and outcome.policy is not None
    at = execute.load(run, ticket, lambda: False)
    update = interpolate.updated(at, outcome.policy)
    for share in wanted:
        update.set(share, shape)
        bench = Bench(update.model, at.job.tokenizer, autocast=native_bf16())
        measured(bench, at.probes, place(run, shape, share), base=run.base_measurements, splits=("report",))


def point(share: float, base: Measurement, after: Measurement) -> Point:
    skills = [name for name, info in base.probes.items() if is_skill(info)]
    before, now = (math.fsum(of.score("report", skill) for skill in skills) / len(skills) for of in (base, after))
    return Point(share, after.score("report", TASK), now, before - now)


def area(points: Sequence[Point]) -> float:
    """Under the most gain that a loss of at most x leaves, from 0 to the loss of the whole update; 1 is all of it."""
    whole = points[-1]
    inside = sorted((p for p in points if p.loss <= whole.loss), key=lambda p: p.loss)
    total, best, at = 0.0, 0.0, 0.0
    for p in inside:
        loss = max(p.loss, 0.0)
        total, at, best = total + best * (loss - at), loss, max(best, p.gain)
    return total / (whole.loss * whole.gain)


def by_share(flat: dict[int, list[Point]], lines: dict[int, list[Point]]) -> list[str]:
    """A row a share, each figure the mean over the seeds."""
    rows = ["| share | flat | lines |", "|---:|---:|---:|"]
    for i, first in enumerate(next(iter(flat.values()))):
        cells = []
        for each in (flat, lines):
            points = [curve[i] for curve in each.values()]
            means = (math.fsum(getattr(p, name) for p in points) / len(points) for name in ("gain", "skills"))
            cells.append(", ".join(f"{mean:.3f}" for mean in means))
        rows.append(f"| {first.share:g} | {cells[0]} | {cells[1]} |")
    return rows


if __name__ == "__main__":
    main()
