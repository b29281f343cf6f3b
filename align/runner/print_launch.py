"""How the stages of a recipe would be started, for `--print-launch`. Starts and writes nothing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from itertools import groupby

from align.engines import command
from align.recipe.plan import Loaded
from align.run_folder.launch import ALONE, Place
from align.run_folder.paths import RunDir
from align.runner import launch


def shown(loaded: Loaded, run: RunDir, place: Place = ALONE) -> str:
    """For each group of stages that share a child: who is in it, its environment and command line, and the
    configuration of accelerate."""
    return "\n".join(_groups(loaded, run, place))


def _groups(loaded: Loaded, run: RunDir, place: Place) -> Iterator[str]:
    for how, plans in groupby(loaded.stages, key=lambda plan: plan.launch):
        line = launch.line(run.root, how, place)
        given = " ".join(f"{key}={shlex.quote(value)}" for key, value in line.environment.items())
        yield f"# {', '.join(plan.id for plan in plans)}: {how}"
        removed = "".join(f"-u {name} " for name in command.FOREIGN if name in os.environ)
        yield f"env {removed}{given} {shlex.join(line.command)}\n"
        if line.configuration is not None:
            path, text = line.configuration
            yield f"# {path}\n{text}"
