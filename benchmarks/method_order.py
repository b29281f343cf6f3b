"""Do methods forget in the same order here as in the table that PEFT publishes for Llama-3.2-3B?

    python -m benchmarks.method_order --runs FOLDER              # three seeds; about 40 CPU minutes
    python -m benchmarks.method_order --runs FOLDER --seeds 7    # one seed, a third of it
    options: --methods NAME..., --target SHARE, --table (only of what is there)

PEFT's figures are those of method_comparison/MetaMathQA/results of huggingface/peft (Apache-2.0), at commit 5d602fd
of 21 August 2026: accuracy is GSM8K's test, forgetting the rise of the mean cross-entropy of a token of Wikipedia, in
nats. Here each method is trained at several learning rates, without replay; forgetting is the rise of the cross-
entropy of a token of held-out stories, the same quantity, and the drop of the mean of the ten skills beside it.
Because methods learn at different rates, forgetting is read where each has the same task accuracy: from a rate of its
own each goes up or down by a factor of 0.6 until two rates lie around `--target` on gate items, and between these two
it is read linearly; the figures are of report items. A method that no rate brings there has no place in the order.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

from align.lab.skills import SKILLS
from benchmarks import clock
from benchmarks.forgetting_predictors import spearman
from benchmarks.lab_methods import TASK, Bench, Method

TARGET = 0.25
STEPS = 240
FACTOR, AT_MOST = 0.6, 7  # from one rate to the next, and how many of them are tried
SEEDS = (7, 8, 9)
TEXT = "stories"
MLP = ["gate_proj", "up_proj", "down_proj"]


def _lora(title: str, rate: float, **settings: Any) -> Method:
    keys = {"method": "lora", "lora": {"r": 16, "alpha": 32, **settings}}
    return Method(title, keys, (rate,))


METHODS = {
    "full": Method("full", {"method": "full"}, (4.2e-4,)),
    "lora": _lora("LoRA", 1.8e-3),
    "rslora": _lora("rsLoRA", 4.5e-4, use_rslora=True),
    "lora_mlp": _lora("LoRA on the MLP", 1.8e-3, target_modules=MLP),
    "oft": Method("OFT", {"method": "oft", "peft": {"r": 0, "oft_block_size": 32}}, (3e-3,)),
    "shira": Method("SHiRA", {"method": "shira", "peft": {"r": 16}}, (6e-3,)),
    "osf": Method("OSF", {"method": "osf"}, (4.2e-4,)),
}
PEFT = {
    "full": (0.472, 0.030),
    "lora": (0.478, 0.050),
    "rslora": (0.513, 0.111),
    "lora_mlp": (0.494, 0.032),
    "oft": (0.491, 0.041),
    "shira": (0.510, 0.052),
    "osf": (0.427, 0.017),
}
"""Accuracy and forgetting: full at 1e-5, LoRA r32, rsLoRA r64, LoRA r10 on the MLP, OFT r32, SHiRA, OSF r128."""


@dataclass(frozen=True)
class Point:
    """A method at one rate and seed: right answers on gate items; on report items the rise of the cross-entropy of text
    in nats, and the drop of the skills' mean."""

    task: float
    nats: float
    drop: float


def point(stage: Path) -> Point:
    """What a finished stage scored against the base."""
    after, base = _scores(stage), _scores(stage.parents[1] / "base")
    nats = math.log(after["report"][TEXT] / base["report"][TEXT])
    drop = sum(base["report"][name] - after["report"][name] for name in SKILLS) / len(SKILLS)
    return Point(after["gate"][TASK], nats, drop)


def _scores(folder: Path) -> dict[str, dict[str, float]]:
    summary = json.loads((folder / "measurements/summary.json").read_text(encoding="utf-8"))
    return {split: {name: one["score"] for name, one in row.items()} for split, row in summary["scores"].items()}


def at_equal_task(points: Sequence[Point], target: float) -> tuple[float, float] | None:
    """Nats and drop where the task is at `target`: between the first two rates, in their order, that lie around it.

    None where no two do.
    """
    for low, high in pairwise(points):
        if min(low.task, high.task) <= target <= max(low.task, high.task) and low.task != high.task:
            share = (target - low.task) / (high.task - low.task)
            return low.nats + share * (high.nats - low.nats), low.drop + share * (high.drop - low.drop)
    return None


def chance(one: Sequence[float], other: Sequence[float]) -> float:
    """How many of all orders correlate at least as strongly: the exact one-sided p-value of the rank correlation."""
    found, every = spearman(one, other), list(permutations(other))
    return sum(spearman(one, order) >= found - 1e-12 for order in every) / len(every)


def search(first: float, task: Callable[[float], float | None], target: float) -> list[float]:
    """Rates tried, sorted: from `first` down while `task(rate)` is above the target, up while it is below.

    It ends where two of them lie around the target, where a higher rate learns half of what a lower one did, where
    `task` knows a rate no more (None), or after AT_MOST.
    """
    scores: dict[float, float] = {}
    rate, over = first, False
    while len(scores) < AT_MOST:
        score = task(rate)
        if score is None:
            break
        if not scores:
            over = score > target
        fell = not over and score < max(scores.values(), default=0.0) / 2
        scores[rate] = score
        if (score > target) != over or fell:
            break
        rate = float(f"{rate * FACTOR if over else rate / FACTOR:.2g}")
    return sorted(scores)


def row(bench: Bench, name: str, seeds: Sequence[int], target: float, *, make: bool) -> list[tuple[float, float]]:
    """Of each seed where the method reaches the target, its forgetting there."""
    found = []
    for seed in seeds:
        points: dict[float, Point] = {}

        def task(rate: float, seed: int = seed, points: dict[float, Point] = points) -> float | None:
            stage = bench.root / f"{name}-{rate:g}-{seed}-{bench.steps}/run/stages/sft"
            if make:
                stage = bench.run(name, rate, seed)
            if not (stage / "outcome.json").is_file():
                return None
            points[rate] = point(stage)
            return points[rate].task

        rates = search(bench.methods[name].grid[0], task, target)
        told = " · ".join(
            f"{rate:g}: {points[rate].task:.2f} {points[rate].nats:+.3f} {points[rate].drop:+.3f}" for rate in rates
        )
        print(f"{name}, seed {seed}: {told or 'no run'}", flush=True)
        here = at_equal_task([points[rate] for rate in rates], target)
        found += [here] if here else []
    return found


def main() -> None:
    """Run what is missing, print the orders and how they agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--target", type=float, default=TARGET)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    parser.add_argument("--table", action="store_true", help="only of what is there")
    asked = parser.parse_args()
    clock.heading(f"method_order: SFT of the lab model, {asked.steps} steps, at {asked.target:.0%} of the task right")
    print("by rate: task correct (gate), nats of text, drop of the skills (report)")
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.runs or Path(temporary)).resolve()
        bench = Bench(root, asked.steps, METHODS, replay=0.0)
        found = {name: row(bench, name, asked.seeds, asked.target, make=not asked.table) for name in asked.methods}
    tell({name: rows for name, rows in found.items() if rows})


def tell(found: dict[str, list[tuple[float, float]]]) -> None:
    """The table and the rank correlations."""
    means = {name: tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)) for name, rows in found.items()}
    print("\n| method | here: nats | here: drop of the skills | seeds | PEFT: nats | PEFT: accuracy |")
    print("|---|---|---|---|---|---|")
    for name, (nats, drop) in sorted(means.items(), key=lambda one: one[1]):
        accuracy, theirs = PEFT[name]
        cells = f"{nats:.3f} | {drop:.3f} | {len(found[name])} | {theirs:.3f} | {accuracy:.3f}"
        print(f"| {METHODS[name].title} | {cells} |")
    if len(means) < 3:
        print("\ntoo few methods reach the target for an order")
        return
    theirs = [PEFT[name][1] for name in means]
    for at, what in enumerate(("nats of text", "drop of the skills")):
        mine = [values[at] for values in means.values()]
        agreed = f"{spearman(mine, theirs):+.2f}, one-sided p {chance(mine, theirs):.3f}"
        print(f"\nrank correlation of {what} with PEFT's forgetting, {len(means)} methods: {agreed}")
    accuracy = spearman([PEFT[name][0] for name in means], theirs)
    print(f"\nrank correlation of PEFT's accuracy with its forgetting: {accuracy:+.2f}")


if __name__ == "__main__":
    main()
