"""CPU seconds of a step in two processes against one, at the same global batch, without their start-up.

    python -m benchmarks.two_processes full
    python -m benchmarks.two_processes lora
    options: --pairs N, --steps N, --rows N

Each side is an `align run` of the lab model, SFT in float32 on the same rows in the same order, with one thread in each
process; two processes are DDP through gloo. Counted is what all processes of a run have used, the parent too, from the
end of one logged step to the end of a later one; imports, loading and saving lie outside. What the training processes
themselves used is printed beside it: parent and launcher wait and look, which costs the more the longer a step takes
on a busy machine. A pair is both sides in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import clock

ROWS, WARM_UP, STEPS, PAIRS = 32, 4, 40, 3
TARGET = 1.15
RATES = {"full": 1e-3, "lora": 1e-3}
POLL = 0.01  # seconds; a step of the lab model takes many times that
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Reading:
    """CPU seconds of a run's processes, and of those that train, when this many steps were done."""

    step: int
    all: float
    training: float


def recipe(method: str, steps: int) -> str:
    """JSON is YAML."""
    training = {
        "max_steps": steps,
        "learning_rate": RATES[method],
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    sft = {"data": {"source": "lab/helpdesk", "limit": 1024}, "training": training}
    return json.dumps(
        {
            "name": "processes",
            "model": {"base": "lab", "dtype": "float32"},
            "parameterization": {"method": method},
            "forgetting": {"probes": "none"},
            "stages": {"sft": sft},
        }
    )


def seconds_a_step(method: str, steps: int, rows: int, processes: int, folder: Path) -> tuple[float, float]:
    """Run one side; CPU seconds of a step, of all processes and of those that train.

    Raises:
        SystemExit: it failed, or was over before it could be read twice.
    """
    (folder / "recipe.yaml").write_text(recipe(method, steps), encoding="utf-8")
    batch = f"stages.sft.training.per_device_train_batch_size={rows // processes}"
    command = [sys.executable, "-m", "align", "run", "recipe.yaml", "--run-dir", "run", "--set", batch]
    settings = {**os.environ, **clock.ONE_THREAD, **clock.OFFLINE}
    with (folder / "log.txt").open("wb") as log:
        run = subprocess.Popen(
            [*command, "--processes", str(processes)], cwd=folder, env=settings, stdout=log, stderr=log
        )
        metrics, readings = folder / "run/stages/sft/metrics.jsonl", list[Reading]()
        for least in (WARM_UP, steps - 1):
            while run.poll() is None and (step := last_step(metrics)) < least:
                time.sleep(POLL)
            if run.poll() is None:
                readings.append(Reading(step, *tree_seconds(run.pid)))
    if run.wait() != 0 or len(readings) < 2:
        raise SystemExit(
            f"{(folder / 'log.txt').read_text(errors='replace')[-3000:]}\n{' '.join(command)} gave no figure"
        )
    return between(*readings)


def between(first: Reading, last: Reading) -> tuple[float, float]:
    """CPU seconds of each step from one reading to the other: of all processes, and of those that train."""
    steps = last.step - first.step
    return (last.all - first.all) / steps, (last.training - first.training) / steps


def last_step(metrics: Path) -> int:
    """The last step in metrics.jsonl; -1 before the first."""
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, IndexError, KeyError):  # not there yet, or a line that is being written
        return -1


def tree_seconds(root: int) -> tuple[float, float]:
    """User and system seconds so far of a process, of its living descendants, and of those that these waited for.

    Returns:
        Of all of them, and of those without children: in a run, the processes that train.
    """
    used, parents = dict[int, float](), dict[int, int]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = sum(map(int, fields[11:15])) / TICK
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    leaves = tree - {parents.get(pid) for pid in tree}
    return sum(used.get(pid, 0.0) for pid in tree), sum(used.get(pid, 0.0) for pid in leaves)


def main() -> None:
    """Pairs of both sides, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=list(RATES))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rows", type=int, default=ROWS, help="of a step, in all processes together")
    asked = parser.parse_args()
    clock.heading(f"A step of SFT, {asked.method}, {asked.rows} rows, in two processes and in one")
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for pair in range(asked.pairs):
        for processes in (1, 2) if pair % 2 == 0 else (2, 1):
            with tempfile.TemporaryDirectory() as folder:
                side = seconds_a_step(asked.method, asked.steps, asked.rows, processes, Path(folder))
            found[processes].append(side)
        print(f"pair {pair + 1}: one {found[1][-1][0]:.3f} s, two {found[2][-1][0]:.3f} s", flush=True)
    for at, what in enumerate(("all processes", "those that train")):
        one, two = ([side[at] for side in found[processes]] for processes in (1, 2))
        ratios = [second / first for first, second in zip(one, two, strict=True)]
        print(f"{what}: one {clock.spread(one, 3)} s, two {clock.spread(two, 3)} s, ratio {clock.spread(ratios, 3)}")
        clock.verdict(f"two / one, {what}", median(ratios), TARGET)


if __name__ == "__main__":
    main()
