"""What each parameterization learns and keeps on the lab model, each at a learning rate that suits it.

    python -m benchmarks.lab_methods --tune              # three or four rates a method, then three seeds; half an hour
    python -m benchmarks.lab_methods --tune --seeds      # the rates alone
    python -m benchmarks.lab_methods --rates lora=5e-3 --methods lora
    options: --methods NAME..., --seeds N..., --steps N, --runs FOLDER

The SFT of recipes/dpo_qlora.yaml (data, replay, 240 steps of 16 rows), weights in `dtype: auto`: float32 where they
are trained, bfloat16 under adapters. A rate is chosen at seed 7 on `gate` items by the mean of task-correct and the ten
skills' mean; the figures are those of `report` items, which decide nothing. CPU seconds are the stage's own, without
measuring, with one thread; those of Spectrum hold its scan. A run that --runs holds already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.lab.skills import SKILLS
from benchmarks import clock

STAGE, TASK = "sft", "helpdesk correct"
SEEDS, TUNED_AT = (7, 8, 9), 7
STEPS, BATCH, REPLAY = 240, 16, 0.2


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        title: what the table calls it.
        keys: the recipe's `parameterization`.
        grid: learning rates to choose from.
    """

    title: str
    keys: dict[str, Any]
    grid: tuple[float, ...]


LORA = {"r": 16, "alpha": 32}
METHODS = {
    "full": Method("full", {"method": "full"}, (5e-4, 7e-4, 1e-3, 1.4e-3)),
    "spectrum": Method("Spectrum 50 %, `mp`", {"method": "spectrum"}, (1e-3, 2e-3, 3e-3)),
    "spectrum_reference": Method(
        "Spectrum 50 %, `reference`",
        {"method": "spectrum", "spectrum": {"estimator": "reference"}},
        (1e-3, 2e-3, 3e-3),
    ),
    "spectrum_lora": Method(
        "Spectrum 50 % with LoRA r16", {"method": "spectrum", "lora": LORA}, (5e-3, 7e-3, 1e-2, 1.4e-2)
    ),
    "lora": Method("LoRA r16", {"method": "lora", "lora": LORA}, (3e-3, 5e-3, 7e-3)),
    "qlora": Method("QLoRA r16", {"method": "qlora", "lora": LORA}, (3e-3, 5e-3, 7e-3)),
    "adapter": Method("adapter r64", {"method": "adapter", "adapter": {"r": 64}}, (5e-3, 1e-2, 2e-2)),
    "adapter_houlsby": Method(
        "adapter r64, `houlsby`",
        {"method": "adapter", "adapter": {"r": 64, "placement": "houlsby"}},
        (5e-3, 1e-2, 2e-2),
    ),
}


@dataclass(frozen=True)
class Bench:
    """Runs methods into folders of their own.

    Attributes:
        root: holds the folders.
        steps: of a run.
        methods: by the names that folders have.
        replay: its share; 0 for none.
    """

    root: Path
    steps: int
    methods: Mapping[str, Method] = field(default_factory=lambda: METHODS)
    replay: float = REPLAY

    def run(self, name: str, rate: float, seed: int) -> Path:
        """The stage's folder of one run, which is made unless it is finished already."""
        here = self.root / f"{name}-{rate:g}-{seed}-{self.steps}"
        here.mkdir(parents=True, exist_ok=True)
        replay = {"replay": {"data": "lab/general", "ratio": self.replay}} if self.replay else {}
        training = {"learning_rate": rate, "max_steps": self.steps, "per_device_train_batch_size": BATCH}
        recipe = {
            "name": "lab_methods",
            "seed": seed,
            "model": {"base": "lab", "dtype": "auto", "attn_implementation": "eager"},
            "pipeline": "sft",
            "parameterization": self.methods[name].keys,
            **replay,
            "forgetting": {"probes": "lab", "on_violation": "warn"},
            "stages": {STAGE: {"data": "lab/helpdesk", "training": training}},
        }
        (here / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        clock.cpu_seconds([sys.executable, "-m", "align", "run", "recipe.yaml", "--run-dir", "run"], here)
        return here / "run/stages" / STAGE

    def tune(self, name: str) -> float:
        """Print a row for each rate, and return the best one on `gate` items."""
        found = {}
        for rate in METHODS[name].grid:
            task, skills = scores(self.run(name, rate, TUNED_AT), "gate")
            found[rate] = (task + skills) / 2
            print(f"| {METHODS[name].title} | {rate:g} | {task:.3f} | {skills:.3f} | {found[rate]:.4f} |", flush=True)
        return max(found, key=lambda rate: found[rate])

    def row(self, name: str, rate: float, seed: int) -> str:
        """What a method scored on `report` items, and what it cost, as a Markdown row."""
        stage = self.run(name, rate, seed)
        task, skills = scores(stage, "report")
        outcome = json.loads((stage / "outcome.json").read_text(encoding="utf-8"))
        share = outcome["parameters"]["trainable"] / outcome["parameters"]["total"]
        cells = f"{rate:g} | {seed} | {task:.3f} | {skills:.3f} | {share:.1%} | {outcome['cpu_seconds']:.1f}"
        return f"| {METHODS[name].title} | {cells} |"


def scores(stage: Path, split: str) -> tuple[float, float]:
    """Task-correct, and the mean of the ten skills."""
    summary = json.loads((stage / "measurements/summary.json").read_text(encoding="utf-8"))
    found = {name: score["score"] for name, score in summary["scores"][split].items()}
    return found[TASK], sum(found[name] for name in SKILLS) / len(SKILLS)


def tuned(bench: Bench, names: list[str]) -> dict[str, float]:
    """The rate of each method, chosen from its grid."""
    print(f"Rates at seed {TUNED_AT}, `gate` items\n")
    print("| method | learning rate | task correct | mean of skills | mean of both |")
    print("|---|---|---|---|---|")
    chosen = {name: bench.tune(name) for name in names}
    print(f"\nchosen: --rates {' '.join(f'{name}={rate:g}' for name, rate in chosen.items())}")
    for name, rate in chosen.items():
        if rate in (METHODS[name].grid[0], METHODS[name].grid[-1]):
            print(f"{name}: {rate:g} is at the end of its grid")
    print(flush=True)
    return chosen


def named_rate(text: str) -> tuple[str, float]:
    """`lora=5e-3`, of the command line."""
    name, _, rate = text.partition("=")
    if name not in METHODS:
        raise argparse.ArgumentTypeError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    try:
        return name, float(rate)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=RATE") from error


def main() -> None:
    """Choose rates where asked, then run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    parser.add_argument("--tune", action="store_true", help="choose the rates that --rates does not name")
    parser.add_argument("--rates", nargs="+", type=named_rate, default=[], metavar="NAME=RATE")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    asked = parser.parse_args()
    rates = dict(asked.rates)
    missing = [name for name in asked.methods if name not in rates]
    if missing and not asked.tune:
        parser.error(f"no learning rate for {', '.join(missing)}: give --tune, or --rates {missing[0]}=RATE")
    clock.heading(f"lab_methods: SFT of the lab model, {asked.steps} steps of {BATCH} rows, replay {REPLAY:.0%}")
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((asked.runs or Path(temporary)).resolve(), asked.steps)
        if missing:
            rates |= tuned(bench, missing)
        if asked.seeds:
            print("| method | learning rate | seed | task correct | mean of skills | trainable | CPU s |")
            print("|---|---|---|---|---|---|---|")
        for name in asked.methods:
            for seed in asked.seeds:
                print(bench.row(name, rates[name], seed), flush=True)


if __name__ == "__main__":
    main()
