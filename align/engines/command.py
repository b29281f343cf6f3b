"""The command line that starts the processes of a launch, and what they find in their environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.run_folder.launch import Launch

WORKER = "align.worker"


def line(launch: Launch, configuration: Path | None, arguments: Sequence[str]) -> list[str]:
    """The command line that runs the worker in all processes.

    `-P` keeps the current folder off its path: a user's folder may hold a `datasets.py`.

    Args:
        configuration: the file for `accelerate launch`; None: one process, started without it.
    """
    python = [sys.executable, "-P", "-m"]
    if configuration is None:
        return [*python, WORKER, *arguments]
    given = ["--config_file", str(configuration)]  # whole: accelerate would fill it up from the user's own otherwise
    return [*python, "accelerate.commands.launch", *given, "--module", WORKER, *arguments]


def environment(launch: Launch) -> dict[str, str]:
    """What the processes find in their environment where the user has set nothing."""
    if launch.processes == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // launch.processes))}


def configured(distributed_type: str, launch: Launch) -> dict[str, Any]:
    """What every configuration of accelerate says: processes of one machine, that meet at a port that is free."""
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": distributed_type,
        "num_machines": 1,
        "machine_rank": 0,
        "num_processes": launch.processes,
        "main_process_port": 0,  # accelerate looks for a free one
        "mixed_precision": "no",  # the trainer's own arguments decide
        "use_cpu": False,
    }
