"""The default recipe at three seeds, with replay and without: what the help desk learns and what is forgotten.

    python benchmarks/seeds.py                 # all of it, about ten CPU minutes; prints the tables of the README
    python benchmarks/seeds.py --seeds 7       # one seed

Figures are those of the `report` items, which no gate judges.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from align.lab.data import NOT_REPLAYED

RECIPES = {"with replay (20 %)": "dpo_qlora", "without replay": "dpo_qlora_no_replay"}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.runs or Path(temporary)
        for title, recipe in RECIPES.items():
            print(f"\n**{title}**: `align run recipes/{recipe}.yaml --set seed=...`\n")
            print(
                "| seed | after | task correct | polite | parses | mean of skills | drop (95 % interval) | verdict |"
                " largest drop, replayed | not replayed | skills FORGOT |"
            )
            print("|---|---|---|---|---|---|---|---|---|---|---|")
            for seed in options.seeds:
                for row in rows(seed, run(recipe, seed, folder / f"{recipe}-{seed}")):
                    print(row, flush=True)


def run(recipe: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run; its forgetting.json."""
    command = [sys.executable, "-m", "align", "run", recipe, "--set", f"seed={seed}", "--run-dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    found: dict[str, Any] = json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))
    return found


def rows(seed: int, forgetting: dict[str, Any]) -> list[str]:
    """Markdown rows, one a stage."""
    out = []
    for stage in forgetting["stages"][1:]:
        cells, mean = forgetting["matrix"][stage], forgetting["mean"][stage]["all"]
        desk = [f"{cells[f'helpdesk {measure}']['score']:.3f}" for measure in ("correct", "polite", "parses")]
        low, high = mean["ci95"]
        forgot = sum(cells[name]["verdict"] == "FORGOT" for name in skills(forgetting, None))
        out.append(
            f"| {seed} | {stage} | {' | '.join(desk)} | {mean['score']:.3f} | {mean['delta']:+.3f} "
            f"({low:+.3f} to {high:+.3f}) | {mean['verdict']} | {worst(forgetting, stage, True)} | "
            f"{worst(forgetting, stage, False)} | {forgot} of 10 |"
        )
    return out


def skills(forgetting: dict[str, Any], replayed: bool | None) -> list[str]:
    """The skills, or those of them that the replay data cover or not, also of a run that replays nothing."""
    return [
        name
        for name, probe in forgetting["probes"].items()
        if probe["kind"] == "skill" and replayed in (None, name not in NOT_REPLAYED)
    ]


def worst(forgetting: dict[str, Any], stage: str, replayed: bool) -> str:
    """The skill that fell most, and by how much."""
    cells = forgetting["matrix"][stage]
    name = min(skills(forgetting, replayed), key=lambda skill: cells[skill]["delta"])
    return f"{name} {cells[name]['delta']:+.3f}"


if __name__ == "__main__":
    main()
