"""`align tune` against the grids of benchmarks/lab_methods.py: what it finds, and what that costs.

    python -m benchmarks.tuning --runs FOLDER            # four methods, three seeds; about two hours on one core
    options: --methods NAME..., --seeds N..., --write

For each method and seed: every rate of the grid is trained for all 240 steps; `align tune` looks between the ends of
the grid in four trials of 80 steps, by held-out tokens and the skills; the rate that it writes is trained for all 240
steps. Compared is the mean of task-correct and of the ten skills on the gate's items, as in the grids: the tuned rate's
within 0.02 of the best cell's. The cost of a side is its updates, and the CPU seconds of its commands, which are made
of starts and measurements too. What --runs holds is not made again; --write puts the table into docs/tuning.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ruamel.yaml import YAML

from benchmarks import clock
from benchmarks.lab_methods import METHODS, REPLAY, STAGE, scores

PAGE = Path(__file__).parents[1] / "docs" / "tuning.md"
NAMES = ("full", "lora", "qlora", "spectrum")
SEEDS = (7, 8, 9)
STEPS, BATCH, TRIALS, SHORT = 240, 16, 4, 80
WITHIN, SHARE = 0.02, 1 / 3
HEAD = (
    "| method | seed | best cell of the grid | tuned | updates, share of the grid's | CPU s, share of the grid's |\n"
    "|---|---|---|---|---|---|\n"
)


@dataclass(frozen=True)
class Cell:
    """A rate that was trained to the end: the mean of task and skills, and CPU seconds of the stage."""

    rate: float
    score: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.rate:.3g}: {self.score:.3f}"


@dataclass(frozen=True)
class Bench:
    """Runs in a folder."""

    root: Path

    def recipe(self, method: str, seed: int, rate: float) -> dict[str, Any]:
        """SFT of recipes/sft_lora.yaml by another method."""
        training = {"learning_rate": rate, "max_steps": STEPS, "per_device_train_batch_size": BATCH}
        return {
            "name": "tuning",
            "seed": seed,
            "model": {"base": "lab", "dtype": "float32", "attn_implementation": "eager"},
            "pipeline": "sft",
            "parameterization": METHODS[method].keys,
            "replay": {"data": "lab/general", "ratio": REPLAY},
            "forgetting": {"probes": "lab", "on_violation": "warn", "answers": False},
            "stages": {STAGE: {"data": "lab/helpdesk", "eval_data": 0.05, "training": training}},
        }

    def cell(self, method: str, seed: int, rate: float) -> Cell:
        """A rate trained to the end."""
        here = self._folder(f"{method}-{seed}-{rate:.4g}", self.recipe(method, seed, rate))
        seconds = self._made(here, ["run", "recipe.yaml", "--run-dir", "run"])
        task, skills = scores(here / "run/stages" / STAGE, "gate")
        return Cell(rate, (task + skills) / 2, seconds)

    def tuned(self, method: str, seed: int) -> tuple[float, int, float]:
        """The rate that is written, the updates of all trials, and the CPU seconds of the command."""
        grid = METHODS[method].grid
        middle = float(f"{(grid[0] * grid[-1]) ** 0.5:.3g}")
        here = self._folder(f"{method}-{seed}-tune", self.recipe(method, seed, middle))
        words = ["--over", f"learning_rate={grid[0]:g}:{grid[-1]:g}", "--trials", str(TRIALS), "--steps", str(SHORT)]
        seconds = self._made(here, ["tune", "recipe.yaml", "--run-dir", "tune", *words])
        stages = [path / "run/stages" / STAGE for path in sorted(here.glob("tune/trials/*"))]
        text = (here / "recipe-tuned.yaml").read_text(encoding="utf-8")
        rate = YAML(typ="safe", pure=True).load(text)["stages"][STAGE]["training"]["learning_rate"]
        return float(rate), sum(map(_updates, stages)), seconds

    def _made(self, here: Path, words: list[str]) -> float:
        """CPU seconds of a command, which is not repeated where it has been made."""
        known = here / "cpu.json"
        if not known.is_file():
            seconds = clock.cpu_seconds([sys.executable, "-m", "align", *words], here)
            known.write_text(json.dumps(seconds), encoding="utf-8")
        return float(json.loads(known.read_text(encoding="utf-8")))

    def _folder(self, name: str, recipe: dict[str, Any]) -> Path:
        here = self.root / name
        here.mkdir(parents=True, exist_ok=True)
        (here / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        return here


def _updates(stage: Path) -> int:
    """How many a stage has made, also one that ended early."""
    rows = [json.loads(row) for row in (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return max(row["step"] for row in rows)


@dataclass(frozen=True)
class Row:
    """A method at a seed: the grid's cells, the tuned rate trained to the end, and what either side cost."""

    method: str
    seed: int
    grid: tuple[Cell, ...]
    tuned: Cell
    updates: int
    seconds: float

    @property
    def best(self) -> Cell:
        return max(self.grid, key=lambda cell: cell.score)

    @property
    def behind(self) -> float:
        """By how much the tuned rate scores below the best cell."""
        return self.best.score - self.tuned.score

    @property
    def share(self) -> float:
        """Of the grid's updates."""
        return self.updates / (STEPS * len(self.grid))

    def __str__(self) -> str:
        whole = sum(cell.seconds for cell in self.grid)
        cost = f"{self.updates}, {self.share:.2f} | {self.seconds:.0f} of {whole:.0f}, {self.seconds / whole:.2f}"
        return f"| {METHODS[self.method].title} | {self.seed} | {self.best} | {self.tuned} | {cost} |"


def row(bench: Bench, method: str, seed: int) -> Row:
    """Both sides of a method at a seed."""
    rate, updates, seconds = bench.tuned(method, seed)
    grid = tuple(bench.cell(method, seed, one) for one in METHODS[method].grid)
    return Row(method, seed, grid, bench.cell(method, seed, rate), updates, seconds)


def main() -> None:
    """Make the rows, print them, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(NAMES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    parser.add_argument("--write", action="store_true", help="put the table into docs/tuning.md")
    asked = parser.parse_args()
    clock.heading(f"tuning: SFT of the lab model, {STEPS} steps of {BATCH} rows; {TRIALS} trials of {SHORT} steps")
    print(HEAD, end="")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((asked.runs or Path(temporary)).resolve())
        for method in asked.methods:
            for seed in asked.seeds:
                rows.append(row(bench, method, seed))
                print(rows[-1], flush=True)
    clock.verdict("largest distance to the best cell", max(one.behind for one in rows), WITHIN)
    clock.verdict("updates, share of the grids'", fmean(one.share for one in rows), SHARE)
    if asked.write:
        before, mark, rest = PAGE.read_text(encoding="utf-8").partition(HEAD)
        after = rest.partition("\n\n")[2]
        table = "".join(f"{one}\n" for one in rows)
        PAGE.write_text(f"{before}{mark}{table}\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
