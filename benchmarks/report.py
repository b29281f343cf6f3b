"""What writing the report of a large run costs, with and without working its matrix out again from all items.

    python -m benchmarks.report      options: --stages 10 --probes 30 --items 1000 --repeats 3

A run folder is made up: that many stages in a chain, probes and items of each half, a loss logged 1,000 times a stage,
and the answers that broke. `align report` reads the matrix and writes the page; `align run` also works the matrix out,
from every item of every stage, when a stage has ended. Both are whole processes, counted from their start.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.run_record import RunRecord, StageEntry
from benchmarks import clock

STEPS = 1000
PAGE = "import sys; from align import report; report.write(sys.argv[1])"
MATRIX = """
import json, sys
from pathlib import Path
from align.forgetting import matrix, measurements
from align.forgetting.keys import ForgettingKeys
from align.run_folder import files
from align.run_folder.paths import RunDir
run = RunDir(Path(sys.argv[1]))
order = json.loads(run.record.read_text())["order"]
found = {"base": measurements.load(run.base_measurements)}
found |= {id: measurements.load(run.stage(id).measurements) for id in order}
parents = dict(zip(order, ["base", *order]))
table = matrix.build(["base", *order], parents, found, ForgettingKeys())
files.write_json(run.forgetting, table.written())
"""
TORCH = "; assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules), 'something heavy was imported'"


def write(run: RunDir, stages: int, probes: int, items: int) -> None:
    """The run folder, with seeded scores that fall from stage to stage."""
    draw = random.Random(0)
    ids = [f"stage_{number}" for number in range(1, stages + 1)]
    parents = ["base", *ids]
    entries = {
        id: StageEntry(stage="sft", inputs={"policy": parent}, status="done")
        for id, parent in zip(ids, parents, strict=False)
    }
    record = RunRecord(name="large", order=tuple(ids), stages=entries, created="2026-01-01T00:00:00+00:00")
    files.write_json(run.record, record.written())
    names = [f"skill_{number}" for number in range(probes - 1)] + ["the task"]
    kinds = {name: "task" if name == "the task" else "skill" for name in names}
    for at, folder in enumerate([run.base_measurements, *(run.stage(id).measurements for id in ids)]):
        _measurement(folder, kinds, items, draw, 0.9 - 0.03 * at)
    for id in ids:
        lines = (
            {"step": step, "max_steps": STEPS, "time": 1.7e9 + step, "loss": 2 * math.exp(-step / 200) + draw.random()}
            for step in range(1, STEPS + 1)
        )
        _lines(run.stage(id).metrics, lines)
        broken = (
            {"probe": name, "id": str(item), "split": "report", "prompt": "x" * 80, "answer": "a", "after": "b" * 40}
            for name in names
            for item in range(items // 10)
        )
        _lines(run.stage(id).measurements / "broken.jsonl", broken)


def _measurement(folder: Path, kinds: dict[str, str], items: int, draw: random.Random, share: float) -> None:
    probes = {name: {"metric": "accuracy", "higher_is_better": True, "kind": kind} for name, kind in kinds.items()}
    scores = {name: {"n": items} for name in kinds}
    files.write_json(folder / "summary.json", {"probes": probes, "scores": {"report": scores}, "seconds": 60.0})
    lines = (
        {"probe": name, "split": "report", "id": str(item), "score": float(draw.random() < share), "output": "y" * 20}
        for name in kinds
        for item in range(items)
    )
    _lines(folder / "items.jsonl", lines)


def _lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def main(stages: int, probes: int, items: int, repeats: int) -> None:
    clock.heading(f"the report of a run of {stages} stages x {probes} probes x {items:,} items")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = RunDir(folder / "run")
        write(run, stages, probes, items)
        spent: dict[str, list[float]] = {"matrix and page": [], "page": []}
        for _ in range(repeats):
            for name, code in (("matrix and page", MATRIX + PAGE), ("page", PAGE + TORCH)):
                command = [sys.executable, "-c", code, str(run.root)]
                environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
                spent[name].append(clock.cpu_seconds(command, folder, environment))
        size = (run.root / "report.html").stat().st_size
        for name, values in spent.items():
            print(f"{name}: {clock.spread(values, 2)} CPU-s")
        print(f"report.html: {size / 1e6:.2f} MB")
        clock.verdict("CPU-s of the page", min(spent["page"]), 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("stages", 10), ("probes", 30), ("items", 1000), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    main(options.stages, options.probes, options.items, options.repeats)
