"""What foretells forgetting: the KL to the base on the task's prompts, against the size of the update and the loss.

    python -m benchmarks.forgetting_predictors --runs FOLDER            # runs what is missing, then prints the table
    python -m benchmarks.forgetting_predictors --runs FOLDER --table    # the table of what is there
    options: --only TEXT (runs whose name holds it), --most N (runs made in this call)

Each run is a short `align run` of the lab model: a method, a learning rate of its first stage, replay or none, and SFT
alone, SFT and DPO, or SFT and RLOO with a reward function. Every stage that gives a policy is a point: the drop of the
mean of the ten skills (report items) against what was known of it without any old data. RL's Razor (2025, arXiv
2509.04259) says that the KL alone sets forgetting, whatever the method; a fit to all methods but one, asked for the
remaining one, is a test of it that can fail. A run that is complete is not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import clock

BOOTSTRAP = 2000
SEED = 7
POLITE = Path(__file__).with_name("polite_reward.py")
LORA = {"r": 16, "alpha": 32}
METHODS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "full": ({"method": "full"}, (2e-4, 7e-4, 2e-3)),
    "lora": ({"method": "lora", "lora": LORA}, (1e-3, 3e-3, 7e-3)),
    "qlora": ({"method": "qlora", "lora": LORA}, (1e-3, 3e-3, 7e-3)),
    "spectrum": ({"method": "spectrum"}, (5e-4, 2e-3, 4e-3)),
}
REPLAYS = (0.0, 0.2)
SECOND = {"full": 5e-5, "lora": 3e-4, "qlora": 3e-4, "spectrum": 1e-4}  # learning rate of DPO and RLOO
CHAINS = ("sft", "dpo", "rloo")
PREDICTORS: dict[str, str] = {
    "kl_own": "KL to the base, its own answers",
    "kl_data": "KL to the base, the data's answers",
    "drift": "relative norm of the update",
    "loss": "mean training loss",
    "share": "share of trained weights",
}


@dataclass(frozen=True)
class Setting:
    """One run."""

    method: str
    rate: float
    replay: float
    chain: str

    @property
    def name(self) -> str:
        return f"{self.chain}-{self.method}-{self.rate:g}-{self.replay:g}"

    def recipe(self) -> dict[str, Any]:
        """As a recipe. Chains go on from the middle rate alone; see `settings`."""
        training = {"learning_rate": self.rate, "max_steps": 120, "per_device_train_batch_size": 16}
        stages: dict[str, Any] = {"sft": {"data": "lab/helpdesk", "training": training}}
        second = {"policy": "sft", "training": {"learning_rate": SECOND[self.method]}}
        if self.chain == "dpo":
            stages["dpo"] = {**second, "data": "lab/helpdesk_preferences"}
            stages["dpo"]["training"] |= {"max_steps": 40, "per_device_train_batch_size": 8}
        elif self.chain == "rloo":
            stages["rloo"] = {**second, "data": "lab/helpdesk", "reward": f"{POLITE}:polite", "beta": 0.05}
            stages["rloo"]["training"] |= {
                "max_steps": 20,
                "per_device_train_batch_size": 32,
                "num_generations": 8,
                "steps_per_generation": 2,
                "num_iterations": 2,
                "max_completion_length": 32,
            }
        return {
            "name": "predictors",
            "seed": SEED,
            "model": {"base": "lab", "dtype": "auto", "attn_implementation": "eager"},
            "parameterization": METHODS[self.method][0],
            **({"replay": {"data": "lab/general", "ratio": self.replay}} if self.replay else {}),
            "forgetting": {"probes": "lab", "on_violation": "warn"},
            "stages": stages,
        }


def settings() -> list[Setting]:
    """SFT at every rate; the two chains from the two higher rates, which leave something to prefer."""
    found = []
    for chain, (method, (_, rates)), replay in product(CHAINS, METHODS.items(), REPLAYS):
        found += [Setting(method, rate, replay, chain) for rate in (rates if chain == "sft" else rates[1:])]
    return found


@dataclass(frozen=True)
class Point:
    """One policy: how much of the skills' mean it lost against the base, and what might have told."""

    run: str
    stage: str
    method: str
    drop: float
    known: dict[str, float]


def make(setting: Setting, root: Path) -> None:
    """Run a setting unless its run is complete; an interrupted one goes on."""
    here = root / setting.name
    if complete(here):
        return
    here.mkdir(parents=True, exist_ok=True)
    (here / "recipe.yaml").write_text(json.dumps(setting.recipe()), encoding="utf-8")  # JSON is YAML
    checkout = {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "align", "run", "recipe.yaml", "--run-dir", "run"]
    spent = clock.cpu_seconds(command, here, checkout)
    print(f"{setting.name}: {spent:.0f} CPU s", flush=True)


def complete(here: Path) -> bool:
    """Whether all stages of a run are done and measured."""
    record = _read(here / "run/run.json")
    stages = record.get("stages", {}) if record else {}
    return bool(stages) and all(stage["status"] == "done" for stage in stages.values())


def points(root: Path) -> list[Point]:
    """Every policy of every complete run; SFT once for each of its settings, not again at the head of a chain."""
    found: dict[tuple[str, ...], Point] = {}
    for setting in settings():
        here = root / setting.name
        if not complete(here):
            continue
        for stage, point in _of_run(here / "run", setting):
            key = (setting.method, f"{setting.rate:g}", f"{setting.replay:g}", stage)
            found.setdefault(key, point)
    return list(found.values())


def _of_run(run: Path, setting: Setting) -> Iterator[tuple[str, Point]]:
    table = _read(run / "forgetting.json") or {}
    for stage, means in table["mean"].items():
        if stage == "base":
            continue
        outcome = _read(run / f"stages/{stage}/outcome.json") or {}
        distance, drift = table["task_kl"][stage], table["drift"][stage]
        parameters, loss = outcome["parameters"], outcome["metrics"].get("train_loss")
        known = {
            "kl_own": distance["own_answers"]["kl"],
            "kl_data": (distance.get("data_answers") or {}).get("kl"),
            "drift": drift["all"]["relative"],
            "loss": loss,
            "share": parameters["trainable"] / parameters["total"],
        }
        numbers = {name: float(value) for name, value in known.items() if value is not None}
        yield stage, Point(setting.name, stage, setting.method, -means["all"]["delta"], numbers)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None  # type: ignore[no-any-return]


# Statistics ------------------------------------------------------------------------------------------------------


def ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    out = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for at in order[start : end + 1]:
            out[at] = (start + end) / 2 + 1
        start = end + 1
    return out


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of ranks (Spearman 1904); nan where one of the two does not vary."""
    a, b = ranks(one), ranks(other)
    ma, mb = math.fsum(a) / len(a), math.fsum(b) / len(b)
    both = math.fsum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
    spread = math.fsum((x - ma) ** 2 for x in a) * math.fsum((y - mb) ** 2 for y in b)
    return both / math.sqrt(spread) if spread > 0 else math.nan


def interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile bootstrap of the rank correlation, over points (Efron & Tibshirani 1993)."""
    draw, n = random.Random(0), len(one)
    found = []
    for _ in range(BOOTSTRAP):
        chosen = [draw.randrange(n) for _ in range(n)]
        value = spearman([one[i] for i in chosen], [other[i] for i in chosen])
        found += [] if math.isnan(value) else [value]
    found.sort()
    return (found[int(0.025 * len(found))], found[int(0.975 * len(found))]) if found else (math.nan, math.nan)


def fit(x: Sequence[float], y: Sequence[float]) -> Callable[[float], float]:
    """The least-squares quadratic, asked only within the range it saw: beyond, the value at the end of it."""
    import numpy as np

    degree = min(2, len(set(x)) - 1)
    coefficients = np.polyfit(np.asarray(x), np.asarray(y), degree)
    low, high = min(x), max(x)
    return lambda value: float(np.polyval(coefficients, min(max(value, low), high)))


def left_out_error(found: Sequence[Point], predictor: str | None) -> dict[str, float]:
    """By method: root mean square error of its drops, foretold by a fit to the other methods.

    Args:
        predictor: None for the mean of the other methods.
    """
    errors = {}
    for method in dict.fromkeys(point.method for point in found):
        rest = [point for point in found if point.method != method]
        own = [point for point in found if point.method == method]
        if not rest:
            continue
        y = [point.drop for point in rest]
        mean = math.fsum(y) / len(y)
        curve = fit([point.known[predictor] for point in rest], y) if predictor else None
        squares = [((curve(p.known[predictor]) if curve and predictor else mean) - p.drop) ** 2 for p in own]
        errors[method] = math.sqrt(math.fsum(squares) / len(squares))
    return errors


def r_squared(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the quadratic fit to all points."""
    curve, mean = fit(x, y), math.fsum(y) / len(y)
    total = math.fsum((value - mean) ** 2 for value in y)
    return 1 - math.fsum((curve(a) - b) ** 2 for a, b in zip(x, y, strict=True)) / total if total else math.nan


# The table -------------------------------------------------------------------------------------------------------


def table(found: Sequence[Point]) -> str:
    """Markdown: a row a predictor; the points of which it is known."""
    methods = list(dict.fromkeys(point.method for point in found))
    heads = ["predictor", "policies", "rank correlation (95 %)", "R² of a quadratic", *methods, "mean"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for predictor, title in PREDICTORS.items():
        known = [point for point in found if predictor in point.known]
        if len(known) < 3:
            continue
        x, y = [point.known[predictor] for point in known], [point.drop for point in known]
        low, high = interval(x, y)
        cells = [title, str(len(known)), f"{spearman(x, y):+.2f} ({low:+.2f} to {high:+.2f})", f"{r_squared(x, y):.2f}"]
        lines.append(_row(cells, left_out_error(known, predictor), methods))
    lines.append(
        _row(["none: the mean of the other methods", str(len(found)), "", ""], left_out_error(found, None), methods)
    )
    drops = [point.drop for point in found]
    note = f"{len(found)} policies of {len({point.run for point in found})} runs; drops from {min(drops):.3f} to "
    note += (
        f"{max(drops):.3f}. Under each method: root mean square error of its drops where the quadratic is fitted to "
    )
    return "\n".join([*lines, "", f"{note}the other methods."])


def _row(cells: list[str], errors: dict[str, float], methods: list[str]) -> str:
    own = [f"{errors[method]:.3f}" if method in errors else "" for method in methods]
    mean = f"{math.fsum(errors.values()) / len(errors):.3f}" if errors else ""
    return f"| {' | '.join([*cells, *own, mean])} |"


def main() -> None:
    """Run what is missing, and print what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="holds a folder for each run")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs whose name holds it")
    parser.add_argument("--most", type=int, default=10**6, metavar="N", help="make at most so many runs")
    asked = parser.parse_args()
    root = asked.runs.resolve()
    if not asked.table:
        clock.heading(f"forgetting_predictors: {len(settings())} runs of the lab model")
        missing = [one for one in settings() if asked.only in one.name and not complete(root / one.name)]
        for setting in missing[: asked.most]:
            make(setting, root)
    found = points(root)
    if not found:
        raise SystemExit(f"{root} holds no complete run yet")
    print(table(found))


if __name__ == "__main__":
    main()
