"""The models of `benchmarks.fuzz`: the lab's, with one or two of its files damaged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from align.lab import build
from benchmarks.fuzzing.recipes import Case, Maker, lay
from benchmarks.fuzzing.runs import damage, near

LAB = Path(build.__file__).parent / "model"
RECIPE = """\
name: model
model: {base: ./base}
parameterization: {method: qlora}
forgetting: {probes: none}
stages:
  sft: {data: rows.jsonl, training: {max_steps: 2}}
  dpo: {policy: sft, data: pairs.jsonl, training: {max_steps: 2}}
"""


class Models(Maker):
    """Damaged model folders, and `align check` of a recipe with one as its base."""

    def make(self, index: int, folder: Path) -> Case:
        chance = self.chance(index)
        self._laid(folder)
        shown = []
        for _ in range(chance.choice((1, 1, 2))):
            name = chance.choice(sorted(path.name for path in LAB.iterdir()))
            told = damage(folder / "base" / name, chance.choice(sorted(LAB.iterdir())), chance)
            shown.append(f"{name}: {told}")
        return Case("\n".join(shown), [["check", "recipe.yaml"]], folder)

    def _laid(self, folder: Path) -> None:
        lay(folder)
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        shutil.copytree(LAB, folder / "base", copy_function=near)

    def good(self, folder: Path) -> Iterator[Case]:
        self._laid(folder)
        yield Case(RECIPE, [["check", "recipe.yaml"]], folder)
