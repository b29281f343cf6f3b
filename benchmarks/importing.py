"""How many keys of other tools' example files `align import` knows.

    python -m benchmarks.importing FOLDER...      # every .yaml and .yml below; prints a line for each folder

A file counts where it trains a language model: others (of inference, of accelerate) are left out, and counted. Each
recipe is written and read again, with the checks of `align check` that look at the file alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from align.errors import AlignError
from align.importing import translate
from align.recipe import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--lost", type=int, default=0, metavar="N", help="also the N keys most often not in the recipe")
    parser.add_argument("--stage", help="of TRL's files, which do not tell")
    asked = parser.parse_args()
    print("| files of | train | not | recipes that load | keys | in the recipe | not needed | not in it |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for folder in asked.folders:
        counts, lost, others = Counter[str](), Counter[str](), 0
        for file in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
            try:
                found = translate.translate(file, stage=asked.stage)
            except AlignError:
                others += 1
                continue
            counts.update(files=1, mapped=len(found.mapped), idle=len(found.idle), lost=len(found.lost))
            lost.update(found.lost.keys())
            with tempfile.TemporaryDirectory() as place:
                out = Path(place) / "recipe.yaml"
                translate.write(found, out)
                try:
                    load.load(out)
                    counts["loaded"] += 1
                except AlignError as error:
                    print(f"{file}: {error}")
        keys = sum(counts[kind] for kind in ("mapped", "idle", "lost"))
        shares = [f"{counts[kind]:,} ({counts[kind] / max(keys, 1):.0%})" for kind in ("mapped", "idle", "lost")]
        print(f"| {folder} | {counts['files']} | {others} | {counts['loaded']} | {keys:,} | {' | '.join(shares)} |")
        for key, count in lost.most_common(asked.lost):
            print(f"  {count:4} {key}")


if __name__ == "__main__":
    main()
