"""Training the lab in float32 and in bfloat16 on this processor, in turn: what bfloat16 costs without AVX-512.

    python -m benchmarks.precision [--pairs 3] [--steps 40]

CPU seconds of a step of SFT, 16 rows: those of an `align run` of so many steps less those of a run of one step, both
without probes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import clock

DTYPES = ("float32", "bfloat16")
METHODS = ("lora", "qlora")


def seconds(method: str, dtype: str, steps: int, folder: Path) -> float:
    """CPU seconds of a run of so many steps."""
    training = {"max_steps": steps, "per_device_train_batch_size": 16, "save_strategy": "no"}
    recipe = {
        "name": "precision",
        "model": {"base": "lab", "dtype": dtype, "attn_implementation": "eager"},
        "parameterization": {"method": method},
        "forgetting": {"probes": "none"},
        "stages": {"sft": {"data": "lab/helpdesk", "training": training}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    shutil.rmtree(folder / "run", ignore_errors=True)
    align = str(Path(sys.executable).with_name("align"))
    return clock.cpu_seconds([align, "run", "recipe.yaml", "--run-dir", "run"], folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    clock.heading("A step of SFT of the lab model, 16 rows")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        print("| | float32 | bfloat16 | bfloat16 / float32 |\n|---|---|---|---|")
        for method in METHODS:
            each: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
            for _ in range(asked.pairs):
                for dtype in DTYPES:
                    spent = [seconds(method, dtype, steps, folder) for steps in (1, 1 + asked.steps)]
                    each[dtype].append((spent[1] - spent[0]) / asked.steps)
            plain, half = (median(each[dtype]) for dtype in DTYPES)
            print(f"| {method} | {plain:.3f} s | {half:.3f} s | {half / plain:.1f} |", flush=True)


if __name__ == "__main__":
    main()
