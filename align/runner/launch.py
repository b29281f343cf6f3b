"""Start the child that executes tickets: one process, or `accelerate launch` of several."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.engines import choose, command
from align.run_folder import files
from align.run_folder.launch import ALONE, Launch, Place
from align.run_folder.paths import RunDir

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


@dataclass(frozen=True)
class Line:
    """How a child is started.

    Attributes:
        command: the command line.
        environment: what it finds in its environment where the user has set nothing else.
        configuration: accelerate's, as YAML, and the file it is written into; None: accelerate starts nothing.
        script: the file that holds the line, for whoever wants to start the child by hand.
    """

    command: list[str]
    environment: dict[str, str]
    configuration: tuple[Path, str] | None
    script: Path

    def write(self) -> None:
        """Keep both files in the run folder."""
        for path, text in ((self.script, self.shell()), *([self.configuration] if self.configuration else [])):
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                files.write_text(path, text)

    def shell(self) -> str:
        """A script that starts the same child. It gets its environment, and the stages whose tickets it executes."""
        exports = "".join(f'export {key}="${{{key}-{value}}}"\n' for key, value in self.environment.items())
        begin = f"cd {shlex.quote(str(Path.cwd()))}\nunset {' '.join(command.FOREIGN)}\n"
        return f'{_SCRIPT}{begin}{exports}exec {shlex.join(self.command)} "$@"\n'


_SCRIPT = """\
# written by align: how it started the processes of a stage. Without arguments they wait for what align asks of them;
# with the names of stages they execute the tickets in the folders of these stages, and end.
"""


def line(run: Path, launch: Launch, place: Place = ALONE) -> Line:
    """How the child of a launch is started.

    Args:
        run: the run folder.
        launch: more than one process, or an engine other than ddp, goes through `accelerate launch`.
        place: the machine on which it is.
    """
    folder = RunDir(run).launch
    found = choose.of(launch).configuration(launch, place)
    name = f"{launch.name}-{place.machine}" if launch.machines > 1 else launch.name
    configuration = (folder / f"{name}.yaml", _yaml(found)) if found is not None else None
    started = command.line(launch, configuration[0] if configuration else None, [str(run)])
    environment = _QUIET | command.environment(launch) | {"PYTHONSAFEPATH": "1"}
    return Line(started, environment, configuration, folder / f"{name}.sh")


def _yaml(configuration: dict[str, Any]) -> str:
    """Values as in JSON, which every YAML reads alike: PyYAML, which accelerate uses, takes a bare `no` for false."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in configuration.items())


def start(run: Path, launch: Launch, log: Path, place: Place = ALONE) -> subprocess.Popen[bytes]:
    """Start the child; it reads the run's queue.

    Args:
        run: the run folder.
        launch: how many processes, and by which engine (gloo without a GPU).
        log: where the child prints before it knows its stage.
        place: the machine on which this is.

    The child gets a session of its own, so that Ctrl-C reaches only the parent, and a pipe whose end tells it that
    the parent is gone.
    """
    how = line(run, launch, place)
    how.write()
    users = {name: value for name, value in os.environ.items() if name not in command.FOREIGN}
    environment = how.environment | users | {"PYTHONSAFEPATH": "1"}
    if log.is_symlink():  # what it points to is not the run's
        log.unlink()
    with log.open("ab") as out:
        return subprocess.Popen(
            how.command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment, start_new_session=True
        )
