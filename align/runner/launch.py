"""Start the child that executes tickets: one process, or `accelerate launch` of several."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

from align.engines import ddp

# Set for the child unless the user has set them.
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep: on a busy machine spinning costs many times the work
    "PYTHONUNBUFFERED": "1",
    # glibc gives big blocks back to the system after each step and asks for them again, page by page: up to a third of
    # a run's CPU time. Kept instead, and in huge pages where the system allows that; benchmarks/chain.py.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
    "THP_MEM_ALLOC_ENABLE": "1",
}


def quiet() -> None:
    """The same settings for a model that is loaded in this process, before transformers is imported."""
    for key, value in (_QUIET | {"TRANSFORMERS_VERBOSITY": "error"}).items():
        os.environ.setdefault(key, value)
    # what libraries say to each other; of the child it goes into its log
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(transformers|peft)\.")


def start(run: Path, processes: int, log: Path) -> subprocess.Popen[bytes]:
    """Start the child; it reads the run's queue.

    Args:
        run: the run folder.
        processes: how many; more than one goes through `accelerate launch` (gloo without a GPU).
        log: where the child prints before it knows its stage.

    The child gets a session of its own, so that Ctrl-C reaches only the parent, and a pipe whose end tells it that
    the parent is gone.
    """
    environment = _QUIET | ddp.environment(processes) | os.environ | {"PYTHONSAFEPATH": "1"}
    command = ddp.command("align.worker", [str(run)], processes)
    with log.open("ab") as out:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment, start_new_session=True
        )
