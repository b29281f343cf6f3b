"""The bad inputs of tests/bad_inputs/*.yaml, each with the exact words that it gets, and the page that shows them.

python tests/error_cases.py > docs/errors.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FOLDER = Path(__file__).parent / "bad_inputs"
CHECK = ["check", "recipe.yaml"]
_TALKS = [[{"role": "user", "content": f"2 + {n}?"}, {"role": "assistant", "content": str(2 + n)}] for n in (2, 3, 4)]
CHATS = "".join(json.dumps({"messages": talk}) + "\n" for talk in _TALKS)
PAIRS = '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n'
RECIPE = "name: chain\nmodel: {base: lab}\nstages:\n  sft:\n    data: chats.jsonl\n"
_HEADER = b'{"weight": {"dtype": "F32", "shape": [250], "data_offsets": [0, 1000]}}'
# Files that YAML cannot hold, by the names that the cases give them.
CONTENTS = {
    "@no_tensors": (2).to_bytes(8, "little") + b"{}",
    "@cut_short": len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(600),
    "@pickle": b"PK",
    "@latin1": b"name: caf\xe9\n",
}


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        title: what is wrong.
        says: the whole message, without "error " before each fault.
        gives: what the page shows of the input; the recipe where it is empty.
        recipe: the text of recipe.yaml in the current folder, which holds chats.jsonl and pairs.jsonl too.
        files: other files of the folder.
        command: the arguments of `align`.
        setup: a function of bad_input_driver.py that changes the machine for this case.
        exit: the exit code.
    """

    title: str
    says: str
    gives: str = ""
    recipe: str = RECIPE
    files: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=lambda: CHECK)
    setup: str = ""
    exit: int = 2

    def contents(self) -> dict[str, bytes]:
        """Every file of the case's folder."""
        texts = {"chats.jsonl": CHATS, "pairs.jsonl": PAIRS, "recipe.yaml": self.recipe} | self.files
        return {name: CONTENTS.get(text, text.encode()) for name, text in texts.items()}


@lru_cache
def sections() -> dict[str, list[Case]]:
    """The cases by section, in the order of the files."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        data: dict[str, Any] = YAML(typ="safe", pure=True).load(path)
        found[data["section"]] = [Case(**case) for case in data["cases"]]
    return found


@lru_cache
def cases() -> dict[str, Case]:
    """Every case by `section: title`."""
    return {f"{section}: {case.title}": case for section, found in sections().items() for case in found}


def page() -> str:
    """docs/errors.md"""
    parts = [_HEAD]
    for section, found in sections().items():
        parts.append(f"## {section}\n")
        parts += [_entry(case) for case in found]
    return "\n".join(parts)


def _entry(case: Case) -> str:
    gives = case.gives or (case.recipe if case.recipe != RECIPE else "")
    shown = f"```text\n{gives.rstrip()}\n```\n\n" if gives else ""
    said = "\n".join(line if line.startswith("  ") else f"error {line}" for line in case.says.splitlines())
    command = f"$ align {' '.join(case.command)}\n" if case.command != CHECK else ""
    code = f"\n\nExit code {case.exit}." if case.exit != 2 else ""
    return f"**{case.title}**\n\n{shown}```console\n{command}{said}\n```{code}\n"


_HEAD = """\
# Errors

Every invalid input gets a message that says where it is (file, line, column), what is wrong, and what to do. All errors
of a recipe are reported at once and before anything heavy is loaded: `align check` answers in under a second.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a stage failed; its log is named |
| 2 | the recipe, the data or the command line is wrong |
| 3 | the gate stopped the run, because a stage forgot more than the recipe allows |
| 4 | the machine lacks something: a package, a GPU, disk space |
| 130 | interrupted; run the same command again to resume |

Signals, and processes that die or hang, are described in [running.md](running.md).

Each entry below shows an input and the answer to it; if no command is shown, it was `align check recipe.yaml`. The page
is generated from the cases in `tests/bad_inputs/`, which are tests of the command.
"""

if __name__ == "__main__":
    print(page(), end="")
