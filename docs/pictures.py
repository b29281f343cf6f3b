"""Make the picture and the terminal text of README.md, from two runs of the demo: with replay and without.

    make pictures        # four minutes on two CPU cores

Writes docs/images/replay.svg and docs/images/no_replay.svg, and replaces the block of text after `<!-- demo -->`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from align.report import records
from align.report.heat_map import heat_map
from align.report.svg import PALETTE

ROOT = Path(__file__).resolve().parents[1]
README, IMAGES = ROOT / "README.md", ROOT / "docs" / "images"
RECIPES = {"replay": "recipes/dpo_qlora.yaml", "no_replay": "recipes/dpo_qlora_no_replay.yaml"}
KEPT = ("helpdesk correct", "helpdesk polite", "copy", "sort", "mean of skills")  # rows of the matrix that are shown
GROUPS = ("The task", "Skills in the replay")


def run(recipe: str, folder: Path) -> str:
    """Run a recipe as a user would, and return what the terminal shows, 100 columns wide."""
    command = [sys.executable, "-m", "align", "run", recipe, "--run-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"COLUMNS": "100"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=True,
    )  # fmt: skip
    return done.stdout.replace(str(folder), f"runs/{Path(recipe).stem}")


def picture(folder: Path) -> str:
    """The heat map of the run's report as a file of its own, on white."""
    forgetting = records.load(folder).forgetting
    assert forgetting is not None
    drawn = heat_map(forgetting).replace("var(--sans)", "sans-serif")
    for name, value in PALETTE.items():
        drawn = drawn.replace(f"var(--{name})", value)
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return re.sub(r"<svg([^>]*)>", rf'<svg xmlns="http://www.w3.org/2000/svg"\1>{ground}', drawn, count=1) + "\n"


def shortened(text: str) -> str:
    """What the demo prints, with most rows of the matrix left out."""
    lines = [line.rstrip() for line in text.splitlines()]
    top, means = (
        next(i for i, line in enumerate(lines) if line.startswith(word)) for word in ("capability", "mean of")
    )
    rows, shown = list[str](), True
    for line in lines[top + 2 : means]:
        name, *figures = re.split(r"\s{2,}", line)
        if name and not figures:  # the head of a group
            shown = name in GROUPS
        if shown and (name in KEPT or not figures) and name:
            rows.append(line)
        elif rows[-1] != "  ...":
            rows.append("  ...")
    ends = [line for line in lines[means:] if not re.match(r"\s+(not )?replayed\b", line)]
    return "\n".join([*lines[: top + 2], *rows, *ends])


def main() -> None:
    """Run both recipes; write the pictures and the text."""
    with tempfile.TemporaryDirectory() as temporary:
        printed = {name: run(recipe, Path(temporary) / name) for name, recipe in RECIPES.items()}
        for name in RECIPES:
            (IMAGES / f"{name}.svg").write_text(picture(Path(temporary) / name), encoding="utf-8")
    before, _, rest = README.read_text(encoding="utf-8").partition("<!-- demo -->\n")
    after = rest.split("```\n", 1)[1]
    README.write_text(f"{before}<!-- demo -->\n```text\n{shortened(printed['replay'])}\n```\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
