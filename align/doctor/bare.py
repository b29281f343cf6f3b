"""The command where a package is missing that it is made of: it says so, and `align doctor` works all the same."""

from __future__ import annotations

import sys

from align.doctor import diagnosis


def main(missing: ModuleNotFoundError) -> int:
    """Tell it; returns the exit code of a machine that lacks something."""
    if sys.argv[1:2] != ["doctor"]:
        remedy = "make install, or pip install align-suite; `align doctor` shows all that is missing"
        print(f"error the package '{missing.name}' is not installed\n  -> {remedy}", file=sys.stderr)
        return 4
    found = []
    for one in diagnosis.look(hub_too="--hub" in sys.argv, steps_too=False):
        found.append(one)
        print(one, flush=True)
    print(diagnosis.verdict(found))
    return 4
