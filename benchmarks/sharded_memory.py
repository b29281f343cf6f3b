"""Memory of each process of an engine that shares out the weights against one process that holds everything, on a CPU.

    python -m benchmarks.sharded_memory
    options: --engine fsdp | zero3, --processes N, --steps N, --runs FOLDER (keeps the model and the runs there)

Both sides are an `align run`: SFT of every weight in float32 on the same rows,
of a Llama of 148 million random weights.
Counted is the anonymous memory of a training process beyond that of one that has imported everything; the largest value
that was seen, every fiftieth of a second. It is compared with 16 bytes for each weight: a float32 each for weights,
gradients and AdamW's two moments. Memory that is freed goes back to the system, as by glibc's defaults; `align run` has
it kept otherwise, and then this says nothing of what is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from align.run_folder import heartbeats
from align.run_folder.paths import RunDir
from benchmarks import clock
from benchmarks.gpu import ppo
from benchmarks.gpu.memory import Shape

SHAPE = Shape(768, 14, 2048, 12, 12)
BYTES = 16  # of a weight that is trained, with its gradient and AdamW's moments
TARGET = 0.65
ENGINES = {"fsdp": ("launch.engine=fsdp",), "zero3": ("launch.engine=deepspeed", "launch.zero_stage=3")}
ROWS = 4
GIVEN_BACK = {"MALLOC_MMAP_MAX_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072", "THP_MEM_ALLOC_ENABLE": "0"}
IMPORTED = "from align.worker import execute, interpolate; print(open('/proc/self/status').read())"


def recipe(base: Path, steps: int, processes: int) -> str:
    """JSON is YAML."""
    training = {
        "max_steps": steps,
        "learning_rate": 1e-4,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": ROWS // processes,
        "gradient_checkpointing": True,
    }
    return json.dumps(
        {
            "name": "sharded",
            "model": {"base": str(base), "dtype": "float32"},
            "parameterization": {"method": "full"},
            "forgetting": {"probes": "none"},
            "stages": {"sft": {"data": {"source": "lab/helpdesk", "limit": 64}, "training": training}},
        }
    )


def anonymous(pid: int) -> int:
    """Bytes of memory of a process that no file stands behind; 0 when it is gone."""
    try:
        return _anonymous(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    except OSError:
        return 0


def _anonymous(status: str) -> int:
    lines = status.splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def peaks(folder: Path, written: str, *arguments: str) -> dict[int, int]:
    """Run it; by rank, the most bytes that a training process had beyond those of all imports.

    Raises:
        SystemExit: it failed.
    """
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(written, encoding="utf-8")
    command = [sys.executable, "-m", "align", "run", "recipe.yaml", "--run-dir", "run", *arguments]
    settings = {**os.environ, **clock.ONE_THREAD, **clock.OFFLINE, **GIVEN_BACK}
    bare = subprocess.run([sys.executable, "-c", IMPORTED], env=settings, capture_output=True, text=True, check=True)
    before, most = _anonymous(bare.stdout), dict[int, int]()
    with (folder / "log.txt").open("wb") as log:
        run = subprocess.Popen(command, cwd=folder, env=settings, stdout=log, stderr=log)
        while run.poll() is None:
            for rank, beat in heartbeats.read(RunDir(folder / "run")).items():
                most[rank] = max(most.get(rank, 0), anonymous(beat.pid) - before)
            time.sleep(0.02)
    if run.returncode:
        raise SystemExit(f"the run failed; see {folder / 'log.txt'}")
    return most


def main() -> None:
    """One process, then several."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="fsdp", choices=list(ENGINES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--runs", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = (given.runs or Path(temporary)).resolve()
        base = root / "model"
        if not (base / ppo.INDEX).is_file():
            ppo.write_model(SHAPE, base)
        weights = json.loads((base / ppo.INDEX).read_text(encoding="utf-8"))["metadata"]["total_size"] // 2  # bfloat16
        everything = BYTES * weights
        print(f"{weights / 1e6:.0f} M weights; with gradients and moments {everything / 1e9:.2f} GB")
        how = [*(word for one in ENGINES[given.engine] for word in ("--set", one)), "--processes", str(given.processes)]
        for name, found in (
            ("one process", peaks(root / "one", recipe(base, given.steps, 1))),
            (f"{given.engine}", peaks(root / given.engine, recipe(base, given.steps, given.processes), *how)),
        ):
            for rank, peak in sorted(found.items()):
                print(f"{name}, rank {rank}: {peak / 1e9:.2f} GB, {peak / everything:.2f} of that")
        worst = max(found.values()) / everything
        print(f"at most {TARGET} is asked for: {'met' if worst <= TARGET else 'NOT met'}")


if __name__ == "__main__":
    main()
