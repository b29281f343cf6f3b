"""Remedies against forgetting, side by side: SFT and DPO of the lab model with each, by full fine-tuning and LoRA.

    python -m benchmarks.remedies --runs FOLDER                  # all of it: three seeds, see --estimate
    python -m benchmarks.remedies --runs FOLDER --seeds 1 --only replay
    python -m benchmarks.remedies --runs FOLDER --table --write  # of what is there, into docs/remedies.md
    options: --method full|lora, --only TEXT (remedies whose name holds it), --estimate, --picture FILE

Each cell is one `align run`. The learning rates of SFT are those that benchmarks/lab_methods.py chose on gate items. Of
a remedy with several strengths, the one to recommend is chosen on gate items as well, by the mean of task-correct and
the ten skills' mean; every figure of the table is of report items, after DPO. A run that FOLDER holds already is not
repeated, and an interrupted one goes on. A remedy whose keys the installed align does not take is skipped, and said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from align.advice.evidence import Cell
from align.lab.skills import SKILLS
from align.report.chart import Chart, Colour, Dots, Mark
from align.report.svg import alone, draw
from benchmarks import clock, written_tables

FIRST_SEED = 7
TASK, TEXT, LAST = "helpdesk correct", "stories", "dpo"
STEPS, BATCH = 240, 16
CPU_SECONDS = 50  # of a cell, about: with these steps
RATES = {"full": (7e-4, 2e-5), "lora": (5e-3, 2e-4)}  # of SFT and of DPO
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "lora": {"r": 16, "alpha": 32}},
}
GENERAL = "lab/general"
CHECKER = Path(__file__).with_name("helpdesk_answer.py")


@dataclass(frozen=True)
class Remedy:
    """A row of the table.

    Attributes:
        name: as the table calls it.
        family: remedies of which the best strength is chosen.
        title: what to do, for `align advise`.
        sft: keys of the SFT stage.
        forgetting: keys of the recipe's `forgetting`.
        change: key of align/advice/changes.py, where the change follows from a stage's own figures.
        rate, steps: factors of SFT's own.
    """

    name: str
    family: str
    title: str = ""
    sft: dict[str, Any] = field(default_factory=dict)
    forgetting: dict[str, Any] = field(default_factory=dict)
    change: str | None = None
    rate: float = 1.0
    steps: float = 1.0

    @property
    def folder(self) -> str:
        return self.name.replace(" %", "").replace(" ", "_")


def remedies() -> Iterator[Remedy]:
    """In the order of the table."""
    yield Remedy("none", "none")
    for share in (1, 2, 5, 10, 20, 50):
        rows = {"replay": {"data": GENERAL, "ratio": share / 100}}
        title = f"replay old rows, {share} % of all"
        yield Remedy(f"replay {share} %", "replay", title, rows, change="replay" if share == 20 else None)
    for share in (1, 2, 5, 10, 20, 50):
        rows = {"replay": {"self": {}, "ratio": share / 100}}
        yield Remedy(
            f"self replay {share} %", "self replay", f"replay rows that the policy writes, {share} % of all", rows
        )
    for limit in (1.5, 2.5, 5, 10):
        title = f"leave tokens untrained that the starting policy finds less probable than 1/{limit:g}"
        yield Remedy(f"mask above {limit:g}", "mask", title, {"mask_above_perplexity": limit})
    for limit in (1.5, 2.5, 5, 10):
        control = {"mask_above_perplexity": limit, "mask_at_random": True}
        yield Remedy(f"as many at random as above {limit:g}", "mask at random", sft=control)
    for power in range(-3, 4):
        keys = {"ewc": {"data": GENERAL, "weight": 10.0**power}}
        yield Remedy(f"EWC {10.0**power:g}", "EWC", "hold the weights that old rows need (EWC)", keys)
    for weight in (0.01, 0.1, 1.0):
        title = "add the KL to the incoming policy to the loss"
        yield Remedy(f"KL term {weight:g}", "KL term", title, {"kl_coef": weight})
    for weight in (0.001, 0.01, 0.1, 1.0):
        yield Remedy(f"L2-SP {weight:g}", "L2-SP", "draw all weights back to their start (L2-SP)", {"l2_sp": weight})
    for shape in ("flat", "lines"):
        keys = {"on_violation": "interpolate", "interpolate": {"shape": shape}}
        title = f"keep the largest share of the update that is within the limits, `{shape}`"
        yield Remedy(f"interpolate {shape}", "interpolate", title, forgetting=keys)
    yield Remedy("sdft", "sdft", "distil from the policy that sees the demonstration (sdft)", {"stage": "sdft"})
    rewrite = {"by": "self", "accept": f"{CHECKER}:right"}
    yield Remedy(
        "rewrite self", "rewrite", "train on the policy's own answers where they are right", {"rewrite": rewrite}
    )
    yield Remedy("half the rate", "gentler", change="rate_half", rate=0.5)
    yield Remedy("half the steps", "gentler", change="half_steps", steps=0.5)
    early = {"every": 20, "early_stop": True}
    yield Remedy("early stop", "early stop", forgetting=early, change="early_stop")


@dataclass(frozen=True)
class Bench:
    """Makes the runs, each in a folder of its own."""

    root: Path

    def recipe(self, remedy: Remedy, method: str, seed: int) -> dict[str, Any]:
        """The chain with a remedy."""
        first, second = RATES[method]
        training = {
            "learning_rate": first * remedy.rate,
            "max_steps": round(STEPS * remedy.steps),
            "per_device_train_batch_size": BATCH,
        }
        preference = {"learning_rate": second, "max_steps": 40, "per_device_train_batch_size": 8}
        return {
            "name": "remedies",
            "seed": seed,
            "model": {"base": "lab", "dtype": "auto", "attn_implementation": "eager"},
            "parameterization": METHODS[method],
            "forgetting": {"probes": "lab", "answers": False} | remedy.forgetting,
            "stages": {
                "sft": {"data": "lab/helpdesk", "training": training} | remedy.sft,
                LAST: {"policy": "sft", "data": "lab/helpdesk_preferences", "training": preference},
            },
        }

    def folder(self, remedy: Remedy, method: str, seed: int) -> Path:
        return self.root / f"{remedy.folder}-{method}-{seed}"

    def refused(self, remedy: Remedy, method: str) -> str:
        """Why the installed align does not take the recipe; empty where it does."""
        here = self.folder(remedy, method, FIRST_SEED)
        self._write(here, remedy, method, FIRST_SEED)
        command = [sys.executable, "-m", "align", "check", "recipe.yaml", "--offline"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, env=_environment())
        return "" if done.returncode == 0 else " ".join(done.stderr.split())

    def make(self, remedy: Remedy, method: str, seed: int) -> None:
        """Run a cell unless it is done."""
        here = self.folder(remedy, method, seed)
        if (here / "spent.json").is_file():
            return
        self._write(here, remedy, method, seed)
        command = [sys.executable, "-m", "align", "run", "recipe.yaml", "--run-dir", "run"]
        spent = clock.cpu_seconds(command, here, {"PYTHONPATH": _environment()["PYTHONPATH"]})
        (here / "spent.json").write_text(json.dumps(spent), encoding="utf-8")
        print(f"{here.name}: {spent:.0f} CPU s", file=sys.stderr, flush=True)

    def _write(self, here: Path, remedy: Remedy, method: str, seed: int) -> None:
        here.mkdir(parents=True, exist_ok=True)
        recipe = self.recipe(remedy, method, seed)
        (here / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML

    def figures(self, remedy: Remedy, method: str, split: str) -> list[tuple[float, float, float, float]]:
        """Of each seed that is there: task, mean of the skills, perplexity, CPU seconds of training both stages."""
        found = []
        for spent in sorted(self.root.glob(f"{remedy.folder}-{method}-*/spent.json")):
            stages = spent.parent / "run/stages"
            summary = json.loads((stages / LAST / "measurements/summary.json").read_text("utf-8"))
            scores = {name: score["score"] for name, score in summary["scores"][split].items()}
            mean = sum(scores[name] for name in SKILLS) / len(SKILLS)
            outcomes = (json.loads((stages / id / "outcome.json").read_text("utf-8")) for id in ("sft", LAST))
            found.append((scores[TASK], mean, scores[TEXT], sum(float(one["cpu_seconds"]) for one in outcomes)))
        return found

    def cell(self, remedy: Remedy, method: str, split: str = "report") -> Cell | None:
        """The means over the seeds; None where there is no run."""
        found = self.figures(remedy, method, split)
        if not found:
            return None
        columns = list(zip(*found, strict=True))
        task, mean, perplexity, cpu = (sum(column) / len(found) for column in columns)
        tasks, means = ((min(column), max(column)) for column in columns[:2])
        keys = remedy.forgetting or {key: value for key, value in remedy.sft.items() if key != "stage"}
        return Cell(
            name=remedy.name, method=method, seeds=len(found), task=task, skills=mean, perplexity=perplexity, cpu=cpu,
            task_range=tasks, skills_range=means,
            title=remedy.title, change=remedy.change, stage=None if remedy.forgetting else "sft",
            keys=json.loads(json.dumps(keys).replace(str(CHECKER), "./check.py")) if remedy.title else {},
        )  # fmt: skip


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, **clock.ONE_THREAD, **clock.OFFLINE, "PYTHONPATH": str(Path(__file__).parents[1])}


def run_all(bench: Bench, chosen: Sequence[Remedy], methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Every cell, one seed after the other, so that a first table is there early."""
    taken = {(remedy.name, method): bench.refused(remedy, method) for remedy in chosen for method in methods}
    for (name, method), why in taken.items():
        if why:
            print(f"skipped: {name}, {method}: {why}", flush=True)
    for seed in seeds:
        for remedy in chosen:
            for method in methods:
                if not taken[remedy.name, method]:
                    bench.make(remedy, method, seed)


def best(bench: Bench, chosen: Sequence[Remedy], method: str) -> Iterator[str]:
    """Of each remedy with several strengths, the one that gate items choose."""
    for family, group in groupby(chosen, key=lambda remedy: remedy.family):
        cells = [cell for one in group if (cell := bench.cell(one, method, "gate")) is not None]
        if len(cells) > 1:
            yield f"{family}, {method}: {max(cells, key=lambda cell: cell.both).name}"


COLOURS: dict[str, Colour] = {
    "none": "ink", "replay": "blue", "self replay": "green", "mask": "orange", "EWC": "purple",
}  # fmt: skip


def front(cells: Sequence[Cell]) -> list[str]:
    """Names of those that no other beats: at least as good at the task and the skills, and better at one of them."""

    def beaten(cell: Cell) -> bool:
        return any(
            one.task >= cell.task and one.skills >= cell.skills and (one.task, one.skills) != (cell.task, cell.skills)
            for one in cells
        )

    return [cell.name for cell in cells if not beaten(cell)]


def picture(cells: Sequence[tuple[Remedy, Cell]], base: float, method: str) -> str:
    """What the task gained against what the skills lost, a point for each remedy; those on the front that learn half of
    the task or more have names."""
    places = {cell.name: (base - cell.skills, cell.task) for _, cell in cells}
    marks: list[Mark] = [
        Dots((places[cell.name],), COLOURS.get(remedy.family, "muted"), (4.5,), name=remedy.name)
        for remedy, cell in cells
    ]
    ahead = ("none", *front([cell for _, cell in cells]))
    named = tuple(
        name for name in ahead if name in places and places[name][1] >= max(y for _, y in places.values()) / 2
    )
    marks.append(Dots(tuple(places[name] for name in named), "ink", (7.0,) * len(named), shape="ring", labels=named))
    chart = Chart(
        f"Task against forgetting after SFT and DPO, {method}",
        tuple((name, colour) for name, colour in COLOURS.items()),
        "mean drop of the skills (further left: less forgotten)",
        "task correct",
        marks,
        size=(760, 420),
        x_name="drop of the skills",
        whole_x=False,
    )
    return alone(draw(chart))


def base_mean(root: Path) -> float:
    """The mean of the skills before training, report items."""
    path = next(root.glob("*/run/base/measurements/summary.json"))
    scores = json.loads(path.read_text("utf-8"))["scores"]["report"]
    return float(sum(scores[name]["score"] for name in SKILLS) / len(SKILLS))


def tell(bench: Bench, chosen: Sequence[Remedy], methods: Sequence[str], asked: argparse.Namespace) -> None:
    """The table, what gate items choose, and the picture."""
    found = [(one, cell) for method in methods for one in chosen if (cell := bench.cell(one, method)) is not None]
    print(f"\n{written_tables.cells([cell for _, cell in found])}\n")
    for method in methods:
        print("\n".join(f"chosen on gate items: {line}" for line in best(bench, chosen, method)))
    if asked.write:
        written_tables.write_cells([cell for _, cell in found])
    for method in methods if asked.picture and found else ():
        mine = [(remedy, cell) for remedy, cell in found if cell.method == method]
        path = asked.picture.with_stem(f"{asked.picture.stem}_{method}")
        path.write_text(picture(mine, base_mean(bench.root), method), encoding="utf-8")
        print(path)


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 7")
    parser.add_argument("--only", default="", help="remedies whose name holds this")
    parser.add_argument("--method", choices=list(METHODS), help="one of them alone")
    parser.add_argument("--estimate", action="store_true", help="say what it would cost, and run nothing")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--write", action="store_true", help="write the rows into align/advice and docs/remedies.md")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw a front for each method")
    asked = parser.parse_args()
    chosen = [remedy for remedy in remedies() if asked.only in remedy.name]
    methods = [asked.method] if asked.method else list(METHODS)
    if asked.estimate:
        count = len(chosen) * len(methods) * asked.seeds
        print(f"{count} runs of about {CPU_SECONDS} CPU seconds: {count * CPU_SECONDS / 3600:.1f} CPU hours")
        return
    clock.heading(f"remedies: SFT of {STEPS} steps and DPO of 40 on the lab model, seeds from {FIRST_SEED}")
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((asked.runs or Path(temporary)).resolve())
        if not asked.table:
            run_all(bench, chosen, methods, range(FIRST_SEED, FIRST_SEED + asked.seeds))
        tell(bench, chosen, methods, asked)


if __name__ == "__main__":
    main()
