"""Make the pictures and the terminal texts of README.md, from two runs of the demo: with replay and without.

    make pictures        # four minutes on two CPU cores

Writes docs/images/replay.svg, no_replay.svg and compare.svg, and replaces the blocks of text after `<!-- demo -->` and
`<!-- compare -->`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from align.compare import build, chart
from align.report import records, svg
from align.report.heat_map import heat_map

ROOT = Path(__file__).resolve().parents[1]
README, IMAGES = ROOT / "README.md", ROOT / "docs" / "images"
RECIPES = {"replay": "recipes/dpo_qlora.yaml", "no_replay": "recipes/dpo_qlora_no_replay.yaml"}
KEPT = ("helpdesk correct", "helpdesk polite", "copy", "sort", "mean of skills")  # rows of the matrix that are shown
GROUPS = ("The task", "Skills in the replay")


def run(recipe: str, folder: Path) -> str:
    """Run a recipe as a user would; what the terminal shows."""
    return printed("run", recipe, "--run-dir", str(folder)).replace(str(folder), f"runs/{Path(recipe).stem}")


def printed(*arguments: str) -> str:
    """What the terminal shows of a command, 100 columns wide."""
    command = [sys.executable, "-m", "align", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"COLUMNS": "100"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=True,
    )  # fmt: skip
    return done.stdout


def picture(folder: Path) -> str:
    """The heat map of the run's report as a file of its own, on white."""
    forgetting = records.load(folder).forgetting
    assert forgetting is not None
    return svg.alone(heat_map(forgetting))


def compared(folders: list[Path]) -> str:
    """The drawing of `align compare --html` as a file of its own, on white."""
    found = build.compare(folders)
    return svg.alone(str(chart.draw(found, found.tables[0], 1)))


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


def of_the_last(text: str) -> str:
    """What `align compare` prints of the last policies, the settings, and its conclusion."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    parts = re.split(r"\n\n(?=after |training of |settings that differ|Change: )", lines)
    return "\n\n".join([parts[0], *(part for part in parts[1:] if not part.startswith(("after ", "training of ")))])


def put(name: str, text: str) -> None:
    """Replace the block of text in README.md after a mark."""
    before, mark, rest = README.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    after = rest.split("```\n", 1)[1]
    README.write_text(f"{before}{mark}```text\n{text}\n```\n{after}", encoding="utf-8")


def main() -> None:
    """Run both recipes and compare the runs; write the pictures and the texts."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / Path(recipe).stem for name, recipe in RECIPES.items()}
        demo = {name: run(recipe, folders[name]) for name, recipe in RECIPES.items()}
        for name, folder in folders.items():
            (IMAGES / f"{name}.svg").write_text(picture(folder), encoding="utf-8")
        (IMAGES / "compare.svg").write_text(compared(list(folders.values())), encoding="utf-8")
        put("demo", shortened(demo["replay"]))
        put("compare", of_the_last(printed("compare", *map(str, folders.values()))))


if __name__ == "__main__":
    main()
