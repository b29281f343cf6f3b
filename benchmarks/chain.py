"""SFT, then DPO, with LoRA on one small Llama: `align run` against TRL's own two scripts.

    python -m benchmarks.chain equal       (a) the same settings, the same losses; 12 steps each, five pairs
    python -m benchmarks.chain defaults    (b) each side's own defaults; 12 steps each, five pairs
    python -m benchmarks.chain long        (c) as (b); 120 steps each, three pairs
    options: --pairs N, --steps N

Counted is everything on both sides: reading and checking data, training, checkpoints, the report. Nothing is measured
between stages. TRL's side is `python -m trl.scripts.sft` (`trl sft` without its launcher, which costs more) and
benchmarks/trl_dpo.py, which goes on with the SFT's adapter as TRL documents it (cheaper than merging it first).

(a) float32, rows in the order of the file, a log at each step. Left at each side's default: when the reference is
computed (align: once; TRL: at each step), and checkpoints (align: four a stage; TRL: one).
(b), (c) align as it comes: rows grouped by length, bfloat16 where the processor has it. TRL as it comes, but in
float32 and without activation checkpointing; the target stands against that. In (b) TRL runs once more with these two
at its own defaults as well: bfloat16 autocast, and activations computed twice.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import clock, synthetic

BATCH = 8
LORA = {"r": 8, "alpha": 16}
SFT = {"learning_rate": 2e-4, "warmup_steps": 0}
DPO = {"learning_rate": 1e-4, "warmup_steps": 0}
EQUAL = {"bf16": False, "train_sampling_strategy": "sequential", "logging_steps": 1}
NAMED = {"bf16": False, "gradient_checkpointing": False}
SEED = 42
TARGETS = {"equal": 0.72, "defaults": 0.45, "long": 0.60}
STEPS = {"equal": 12, "defaults": 12, "long": 120}
PAIRS = {"equal": 5, "defaults": 5, "long": 3}

Settings = dict[str, float | bool | str]


class Bench:
    """The model, the rows and a new folder for each run."""

    def __init__(self, root: Path, steps: int) -> None:
        self.root, self.steps, self.runs = root, steps, 0
        self.model = root / "model"
        synthetic.write_model(self.model)
        self.sft = synthetic.write_rows(synthetic.sft_rows(BATCH * steps), root / "sft")
        self.dpo = synthetic.write_rows(synthetic.preference_rows(BATCH * steps), root / "dpo")

    def folder(self) -> Path:
        self.runs += 1
        made = self.root / f"run{self.runs}"
        made.mkdir()
        return made

    def align(self, settings: Settings) -> tuple[float, list[float]]:
        """CPU seconds of `align run`, and the logged losses of both stages."""
        here = self.folder()
        common = {**settings, "max_steps": self.steps, "per_device_train_batch_size": BATCH}
        recipe = {
            "name": "chain",
            "seed": SEED,
            "model": {"base": str(self.model), "dtype": "float32"} if settings else {"base": str(self.model)},
            "parameterization": {"method": "lora", "lora": LORA},
            "forgetting": {"probes": "none"},
            "pipeline": "sft_dpo",
            "stages": {
                "sft": {"data": str(self.sft), "training": {**common, **SFT}},
                "dpo": {"data": str(self.dpo), "beta": 0.1, "training": {**common, **DPO}},
            },
        }
        (here / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        align = str(Path(sys.executable).with_name("align"))
        seconds = clock.cpu_seconds([align, "run", "recipe.yaml", "--run-dir", "run"], here)
        losses = [loss for stage in ("sft", "dpo") for loss in _align_losses(here / "run/stages" / stage)]
        shutil.rmtree(here)
        return seconds, losses

    def trl(self, settings: Settings) -> tuple[float, list[float]]:
        """CPU seconds of TRL's two scripts, and the logged losses."""
        here = self.folder()
        common: Settings = {
            **settings,
            "max_steps": self.steps,
            "per_device_train_batch_size": BATCH,
            "seed": SEED,
            "use_cpu": True,
        }
        lora = ["--use_peft", "--lora_r", str(LORA["r"]), "--lora_alpha", str(LORA["alpha"]), "--lora_dropout", "0"]
        lora += ["--lora_target_modules", "all-linear"]
        sft = ["-m", "trl.scripts.sft", "--model_name_or_path", str(self.model), "--dataset_name", str(self.sft.parent)]
        sft += ["--output_dir", "sft", *lora, *_flags({**common, **SFT})]
        script = str(Path(__file__).with_name("trl_dpo.py"))
        dpo = [script, "--model_name_or_path", "sft", "--dataset_name", str(self.dpo.parent), "--output_dir", "dpo"]
        dpo += ["--beta", "0.1", *_flags({**common, **DPO})]
        # every run prepares its data anew, as align does
        cache = {"HF_DATASETS_CACHE": str(here / "cache")}
        seconds = sum(clock.cpu_seconds([sys.executable, *command], here, cache) for command in (sft, dpo))
        losses = [loss for stage in ("sft", "dpo") for loss in _trl_losses(here / stage, self.steps)]
        shutil.rmtree(here)
        return seconds, losses


def _flags(settings: Settings) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def _align_losses(stage: Path) -> list[float]:
    entries = [json.loads(line) for line in (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def _trl_losses(output: Path, steps: int) -> list[float]:
    state = json.loads((output / f"checkpoint-{steps}/trainer_state.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def equal(bench: Bench, pairs: int) -> None:
    """(a): the same work; the losses show that it is."""
    ours, theirs, apart = [], [], []
    for number in range(pairs):
        seconds, losses = bench.align({**EQUAL, "gradient_checkpointing": False})
        peer, expected = bench.trl({**EQUAL, "gradient_checkpointing": False})
        ours.append(seconds)
        theirs.append(peer)
        apart.append([abs(a - b) for a, b in zip(losses, expected, strict=True)])
        _progress(number, {"align run": ours, "TRL": theirs})
    _table({"align run": ours, "TRL, two scripts": theirs})
    steps = bench.steps
    print(
        f"largest difference of a step's loss: SFT {max(max(d[:steps]) for d in apart):.1e}, "
        f"DPO {max(max(d[steps:]) for d in apart):.1e}"
    )
    clock.verdict("align / TRL", _ratio(ours, theirs), TARGETS["equal"])


def defaults(bench: Bench, pairs: int, name: str) -> None:
    """(b) and (c): what a user gets."""
    sides: dict[str, Callable[[], float]] = {
        "align run": lambda: bench.align({})[0],
        "TRL, float32, no checkpointing": lambda: bench.trl(NAMED)[0],
    }
    if name == "defaults":
        sides["TRL, its own defaults"] = lambda: bench.trl({})[0]
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(pairs):
        for side, run in sides.items():
            found[side].append(run())
        _progress(number, found)
    _table(found)
    ours, *peers = found.values()
    for peer, seconds in zip(list(sides)[1:], peers, strict=True):
        print(f"align / {peer}: {_ratio(ours, seconds):.3g}")
    clock.verdict("align / TRL", _ratio(ours, peers[0]), TARGETS[name])


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def _progress(number: int, sides: dict[str, list[float]]) -> None:
    seconds = ", ".join(f"{name} {values[-1]:.1f} s" for name, values in sides.items())
    print(f"pair {number + 1}: {seconds}", file=sys.stderr, flush=True)


def _table(sides: dict[str, list[float]]) -> None:
    for name, seconds in sides.items():
        print(f"{name:<32} {clock.spread(seconds)} s")


def main() -> None:
    """Run one of the three comparisons."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("comparison", choices=list(TARGETS))
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--steps", type=int)
    asked = parser.parse_args()
    name = asked.comparison
    steps, pairs = asked.steps or STEPS[name], asked.pairs or PAIRS[name]
    clock.one_thread()
    clock.quiet()
    clock.heading(f"chain {name}: SFT -> DPO, LoRA r8, batch {BATCH}, {steps} steps each, {pairs} pairs")
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root), steps)
        if name == "equal":
            equal(bench, pairs)
        else:
            defaults(bench, pairs, name)


if __name__ == "__main__":
    main()
