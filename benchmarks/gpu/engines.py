"""First and last losses of a short SFT on several GPUs, by each engine, against one process on one GPU.

    python -m benchmarks.gpu.engines --out engines.json   # one process for each GPU
    python -m benchmarks.gpu.engines --dry                # the lab model and two processes on the CPU
    options: --engines NAME..., --methods NAME..., --processes N, --runs FOLDER (keeps models and runs there)

Each run is an `align run` of its own, at the same global batch and with the same rows in each step. The first loss is
of the same weights on both sides, the last one of weights that each side trained. A difference counts relative to the
loss of one process; in bfloat16 1e-2 is allowed, in float32 (`--dry`) 1e-5. The model is a Llama of 1.1 billion random
weights, written to a folder; the network is not used.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import clock
from benchmarks.gpu import memory, ppo
from benchmarks.gpu.memory import ROOT, Row, Shape

# what the recipe of each sets, besides the number of processes
ENGINES: dict[str, tuple[str, ...]] = {"ddp": (), "fsdp": ("launch.engine=fsdp",)}
if importlib.util.find_spec("deepspeed"):
    ENGINES["zero2"] = ("launch.engine=deepspeed",)
    ENGINES["zero3"] = ("launch.engine=deepspeed", "launch.zero_stage=3")
RATES = {"full": 1e-4, "lora": 1e-3}  # learning rates by method


@dataclass(frozen=True)
class Scale:
    """How much is trained: the model (None is the lab's), steps, rows of a step, and the difference that is allowed."""

    shape: Shape | None
    steps: int
    batch: int
    bf16: bool
    tolerance: float


REAL = Scale(Shape(2048, 22, 5632, 32, 4), steps=30, batch=16, bf16=True, tolerance=1e-2)
TINY = Scale(None, steps=6, batch=8, bf16=False, tolerance=1e-5)


def recipe(method: str, scale: Scale, processes: int, base: str) -> Row:
    """What `align run` is asked to do; the global batch does not depend on `processes`."""
    training = {
        "max_steps": scale.steps,
        "per_device_train_batch_size": scale.batch // processes,
        "learning_rate": RATES[method],
        "bf16": scale.bf16,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    return {
        "name": f"{method}-{processes}",
        "seed": 7,
        "model": {"base": base, "dtype": "auto" if scale.bf16 else "float32"},
        "parameterization": {"method": method},
        "forgetting": {"probes": "none"},
        "launch": {"processes": processes},
        "stages": {"sft": {"data": {"source": "lab/helpdesk", "limit": 256}, "training": training}},
    }


def losses(method: str, scale: Scale, processes: int, root: Path, sets: Sequence[str] = ()) -> list[float]:
    """The loss of each step of a run; a run that is there already is read.

    Raises:
        RuntimeError: it failed, with the message of align.
    """
    base = root / "model"
    if scale.shape is not None and not (base / ppo.INDEX).is_file():
        ppo.write_model(scale.shape, base)
    name = "-".join([method, str(processes), *(one.replace("=", "-") for one in sets)])
    file, run = root / f"{name}.yaml", root / name
    written = recipe(method, scale, processes, str(base) if scale.shape else "lab")
    file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    words = [word for one in sets for word in ("--set", one)]
    command = [sys.executable, "-m", "align", "run", str(file), "--run-dir", str(run), *words]
    settings = {**os.environ, **clock.OFFLINE, "NO_COLOR": "1", "COLUMNS": "1000"}
    if processes == 1:
        settings["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        told = next((line for line in lines if line.startswith("error ")), lines[-1] if lines else "")
        raise RuntimeError(told[:300] or f"ended with code {done.returncode}")
    entries = (json.loads(line) for line in (run / "stages/sft/metrics.jsonl").read_text("utf-8").splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def measure(engine: str, method: str, processes: int, dry: bool, root: Path) -> Row:
    """One engine and method against one process; its error where a run fails."""
    scale = TINY if dry else REAL
    row: Row = {"engine": engine, "method": method, "processes": processes, "dry": dry}
    if processes < 2 or scale.batch % processes:
        return {
            **row,
            "error": f"{processes} processes cannot share {scale.batch} rows; 2 or more are compared with one",
        }
    root.mkdir(parents=True, exist_ok=True)
    try:
        one = losses(method, scale, 1, root)
        several = losses(method, scale, processes, root, ENGINES[engine])
    except RuntimeError as error:
        return {**row, "error": str(error)}
    return {**row, "one": one, "several": several, "tolerance": scale.tolerance, **differences(one, several)}


def differences(one: Sequence[float], several: Sequence[float]) -> dict[str, float]:
    """Of the first and of the last loss, relative to one process.

    Raises:
        ValueError: they made another number of steps.
    """
    first, *_, last = zip(one, several, strict=True)
    return {name: abs(b - a) / abs(a) for name, (a, b) in (("first", first), ("last", last))}


def line(row: Row) -> str:
    """A row of the table."""
    title = f"| {row['engine']} x {row['processes']}, {row['method']}"
    if "error" in row:
        return f"{title} | failed: {row['error']} |"
    met = max(row["first"], row["last"]) <= row["tolerance"]
    cells = [
        f"{row['one'][at]:.4f} | {row['several'][at]:.4f} | {row[name]:.1e}"
        for at, name in ((0, "first"), (-1, "last"))
    ]
    return f"{title} | {' | '.join(cells)} | {row['tolerance']:g}, {'met' if met else 'NOT met'} |"


def main() -> None:
    """All engines and methods in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=list(RATES), default=list(RATES), metavar="NAME")
    parser.add_argument("--processes", type=int, help="by default one for each GPU, or 2 with --dry")
    parser.add_argument("--dry", action="store_true", help="the lab model on the CPU: whether it works, not a figure")
    parser.add_argument("--out", type=Path, help="write what was measured as JSON")
    parser.add_argument("--runs", type=Path, help="keep the model and the run folders here")
    asked = parser.parse_args()
    about: Row = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "gpu": "none, dry run with the lab model" if asked.dry else memory._gpu(),
        "versions": {name: version(name) for name in memory.PACKAGES},
    }
    print(f"{about['date']}, {about['gpu']}, {', '.join(f'{n} {v}' for n, v in about['versions'].items())}\n")
    print(
        "| engine, method | first loss, one | several | difference | last loss, one | several | difference | allowed |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    processes = asked.processes or (2 if asked.dry else gpus())
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        root = (asked.runs or Path(temporary)).resolve()
        for engine in asked.engines:
            for method in asked.methods:
                found.append(measure(engine, method, processes, asked.dry, root))
                print(line(found[-1]), flush=True)
                if asked.out:
                    asked.out.write_text(json.dumps({**about, "cases": found}, indent=2) + "\n", encoding="utf-8")


def gpus() -> int:
    """How many there are."""
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    main()
