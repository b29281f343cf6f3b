"""Remedies on a real model: full fine-tuning at a rate at which it forgets, without a remedy and with each.

    python -m benchmarks.real_remedies MODEL DATA OLD --runs FOLDER     # e.g. instructions, and texts of another kind
    options: --more FILE, --only NAME..., --rate 3e-4 --steps 30 --items 60, --table (of what is there)

Every run is one stage from the base, measured by the general battery; a twentieth of DATA is held out, and its loss is
what was learnt. OLD, cut into passages of 600 characters, is what `replay` and `EWC` take; a second replay takes the
rows of MORE too. The base is measured once.
A run that FOLDER holds already is not repeated. Figures are of report items, with the paired 95 % interval of the
change of the mean of the skills.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import clock
from benchmarks.real_forgetting import passages

STAGE, OLD, MORE = "sft", "OLD", "MORE"


@dataclass(frozen=True)
class Case:
    """Keys of the stage and of `forgetting`, and factors of the rate and the steps."""

    stage: dict[str, Any] = field(default_factory=dict)
    forgetting: dict[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    steps: float = 1.0


CASES = {
    "none": Case(),
    "replay 5 %": Case({"replay": {"data": OLD, "ratio": 0.05}}),
    "replay 20 %": Case({"replay": {"data": OLD, "ratio": 0.2}}),
    "replay 20 %, both": Case({"replay": {"data": [OLD, MORE], "ratio": 0.2}}),
    "self replay 20 %": Case({"replay": {"self": {"unfinished": "keep"}, "ratio": 0.2}}),
    "mask above 10": Case({"mask_above_perplexity": 10.0}),
    "EWC 0.01": Case({"ewc": {"data": OLD, "weight": 0.01}}),
    "KL term 0.1": Case({"kl_coef": 0.1}),
    "L2-SP 0.001": Case({"l2_sp": 0.001}),
    "interpolate flat": Case(forgetting={"on_violation": "interpolate", "interpolate": {"shape": "flat"}}),
    "interpolate lines": Case(forgetting={"on_violation": "interpolate", "interpolate": {"shape": "lines"}}),
    "half the rate": Case(rate=0.5),
    "half the steps": Case(steps=0.5),
}


def recipe(case: Case, given: argparse.Namespace, old: Path) -> dict[str, Any]:
    """One stage of full fine-tuning from the base."""
    training = {
        "learning_rate": given.rate * case.rate,
        "max_steps": round(given.steps * case.steps),
        "per_device_train_batch_size": 8,
    }
    keys = json.loads(json.dumps(case.stage).replace(f'"{OLD}"', json.dumps(str(old))).replace(f'"{MORE}"', given.more))
    return {
        "name": "real_remedies",
        "model": {"base": given.model},
        "parameterization": {"method": "full"},
        "forgetting": {"probes": "general", "items": given.items} | case.forgetting,
        "stages": {STAGE: {"data": given.data, "eval_data": 0.05, "training": training} | keys},
    }


def make(name: str, given: argparse.Namespace, old: Path) -> None:
    """Run a case unless it is done; the base's measurements of another case are taken over."""
    here = folder(given.runs, name)
    if (here / "report.md").is_file():
        return
    here.mkdir(parents=True, exist_ok=True)
    measured = next((path for path in given.runs.glob("*/run/base") if (path.parent / "report.md").is_file()), None)
    if measured is not None and not (here / "run").exists():
        shutil.copytree(measured, here / "run" / "base")
    file = here / "recipe.yaml"  # JSON is YAML
    file.write_text(json.dumps(recipe(CASES[name], given, old)), encoding="utf-8")
    command = [sys.executable, "-m", "align", "run", "recipe.yaml", "--run-dir", "run"]
    spent = clock.cpu_seconds(command, here, {"PYTHONPATH": str(Path(__file__).parents[1])})
    shutil.copy(here / "run" / "report.md", here / "report.md")
    print(f"{name}: {spent:.0f} CPU s", file=sys.stderr, flush=True)


def folder(runs: Path, name: str) -> Path:
    return runs / name.replace(" %", "").replace(",", "").replace(" ", "_")


def table(runs: Path) -> Iterator[str]:
    """A row for each case that came to its end."""
    yield "| remedy | loss on held-out rows | mean of the skills | text, perplexity | forgot | KL | CPU s |"
    yield "|---|---|---|---|---|---|---|"
    for name in CASES:
        here = folder(runs, name)
        if (here / "report.md").is_file():  # it came to its end
            back = json.loads((here / "run/stages" / STAGE / "decision.json").read_text(encoding="utf-8"))["policy"]
            rolled = " (rolled back: the base goes on)" if back == "rolled_back" else ""
            yield f"| {name}{rolled} | {' | '.join(cells(here / 'run'))} |"


def cells(run: Path) -> Iterator[str]:
    """What a run's folder says of the trained policy; of a share of its update where one goes on, but for the loss."""
    found = json.loads((run / "forgetting.json").read_text(encoding="utf-8"))
    outcome = json.loads((run / "stages" / STAGE / "outcome.json").read_text(encoding="utf-8"))
    losses = [row["eval_loss"] for row in _metrics(run) if "eval_loss" in row]
    yield f"{losses[0]:.3f} -> {losses[-1]:.3f}"
    mean, text = found["mean"][STAGE]["all"], found["matrix"][STAGE]["general text"]
    low, high = mean["ci95"]
    before = found["mean"]["base"]["all"]["score"]
    yield f"{before:.3f} -> {mean['score']:.3f}, {mean['delta']:+.3f} [{low:+.3f}, {high:+.3f}]"
    yield f"{found['matrix']['base']['general text']['score']:.1f} -> {text['score']:.1f}"
    yield ", ".join(name for name, cell in found["matrix"][STAGE].items() if cell.get("verdict") == "FORGOT") or "none"
    distance = (found.get("task_kl", {}).get(STAGE) or {}).get("own_answers")
    yield f"{distance['kl']:.2f}" if distance else ""
    yield f"{outcome['cpu_seconds']:.0f}"


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "stages" / STAGE / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("old", type=Path)
    parser.add_argument("--more", type=lambda file: json.dumps(str(Path(file).resolve())), default='"MORE"')
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    if not given.table:
        given.runs.mkdir(parents=True, exist_ok=True)
        old = given.runs / "old.jsonl"
        old.write_text("".join(passages(given.old)), encoding="utf-8")
        for name in given.only:
            make(name, given, old)
    print("\n".join(table(given.runs)))


if __name__ == "__main__":
    main()
