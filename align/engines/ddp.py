"""Distributed data parallel: each process holds the whole model and a part of each batch; one process, all of it.

The first process holds whole weights and saves them; nothing has to be gathered.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from align.errors import AlignError, Exit

if TYPE_CHECKING:
    from accelerate import PartialState

WAIT = timedelta(hours=24)  # for the first process, which measures and saves: NCCL gives up after ten minutes


def command(module: str, arguments: Sequence[str], processes: int) -> list[str]:
    """The command line that runs a module in this many processes.

    `-P` keeps the current folder off its path: a user's folder may hold a `datasets.py`.
    """
    python = [sys.executable, "-P", "-m"]
    if processes == 1:
        return [*python, module, *arguments]
    options = {
        "num_processes": processes,
        "num_machines": 1,
        "mixed_precision": "no",  # the trainer's own arguments decide
        "dynamo_backend": "no",
        "main_process_port": _free_port(),
    }
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [*python, "accelerate.commands.launch", "--multi_gpu", *given, "--module", module, *arguments]


def environment(processes: int) -> dict[str, str]:
    """What the processes find in their environment where the user has set nothing."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))} if processes > 1 else {}


def begin(processes: int) -> PartialState:
    """Meet the other processes. Some launches start one process and say nothing.

    Raises:
        AlignError: another number came up than was asked for; then the batch is not what the recipe says.
    """
    import torch
    from accelerate import InitProcessGroupKwargs, PartialState

    patience = InitProcessGroupKwargs(timeout=WAIT).to_kwargs() if processes > 1 else {}
    state = PartialState(cpu=not torch.cuda.is_available(), **patience)
    if state.num_processes != processes:
        raise AlignError(
            f"{processes} processes were requested, but {state.num_processes} started",
            "see child.log in the run folder",
            exit=Exit.MACHINE,
        )
    return state


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
