"""The learning rate of the main recipe's SFT on `gate` items, so that it can be chosen without the `report` items.

python benchmarks/rates.py             # four rates, about three CPU minutes; prints a table
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from align.lab.skills import SKILLS

RATES = ("3.0e-3", "4.0e-3", "5.0e-3", "6.0e-3")
DESK = ("helpdesk correct", "helpdesk polite", "helpdesk parses")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=list(RATES))
    asked = parser.parse_args()
    print("| learning rate | after | task correct | polite | parses | mean of skills | lowest skill |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for rate in asked.rates:
            run(rate, Path(folder) / rate)
            for stage in ("sft", "dpo"):
                print(f"| {rate} | {stage} | {row(Path(folder) / rate / 'stages' / stage)} |", flush=True)


def run(rate: str, folder: Path) -> None:
    """The main recipe at another learning rate of its first stage."""
    override = f"stages.sft.training.learning_rate={rate}"
    command = [sys.executable, "-m", "align", "run", "dpo_qlora", "--set", override, "--run-dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def row(stage: Path) -> str:
    """What one stage scored on `gate` items."""
    summary = json.loads((stage / "measurements/summary.json").read_text(encoding="utf-8"))
    scores = {name: found["score"] for name, found in summary["scores"]["gate"].items()}
    skills = [scores[name] for name in SKILLS]
    lowest = min(SKILLS, key=lambda name: scores[name])
    desk = " | ".join(f"{scores[name]:.3f}" for name in DESK)
    return f"{desk} | {sum(skills) / len(skills):.3f} | {lowest} {scores[lowest]:.3f}"


if __name__ == "__main__":
    main()
