"""A SLURM batch script that runs a recipe, for `align run --print-sbatch`; docs/scale.md."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from align.errors import AlignError
from align.preflight.check import prepare
from align.recipe.plan import Loaded
from align.run_folder.paths import RunDir
from align.runner.options import Options

CPUS = 8  # for each process: rows are tokenised and batches prepared beside the training
TIME = "04:00:00"  # short jobs start early, and this one goes on after its limit
SECONDS = 120  # before the limit, for a step and a checkpoint
_EDIT = {"partition": "NAME", "account": "NAME", "mem": "64G"}  # only the user knows these; shown as comments
_GPUS = ("gpus-per-node", "gres", "gpus", "gpus-per-task", "gpus-per-socket")
_SIGNAL = re.compile(r"B:(SIG)?USR1@[1-9]\d{0,4}")
_OPTION = re.compile(r"(?P<name>[a-z][a-z0-9]*(-[a-z0-9]+)*)(=(?P<value>.+))?")
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f'\"\\]")  # what cannot stand in an #SBATCH line, whose quotes know no escapes

_BODY = """\

# SLURM sends SIGUSR1 to this script before the time limit. `align run` gets it as SIGTERM, saves a checkpoint after the
# step that it is at and leaves with code 130; the job goes back into the queue, and the same command resumes.
# SIGTERM (scancel, preemption, the limit itself) saves too, and leaves it to SLURM whether the job starts again.
set -m  # a process group of its own: a signal that SLURM sends to all processes of this script reaches the run once
run= asked= heard= again=
save() {
  heard=1
  if [ -n "$run" ] && [ -z "$asked" ]; then  # a second one would end it without a checkpoint
    asked=1
    kill -TERM "$run"
  fi
}
trap 'again=1; save' USR1
trap save TERM

cd -- @FOLDER@ || exit
cores=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-@CPUS@}}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(((cores + @MORE@) / @PROCESSES@))}"  # of each process, one at least

@START@
run=$!
@WATCH@if [ -n "$heard" ]; then save; fi
while  # bash answers a signal only between commands, or while it waits
  heard=
  wait "$run"
  code=$?
  [ -n "$heard" ]
do :; done

# 143: it was asked to leave before it had begun
if [ -n "$again" ] && { [ "$code" -eq 130 ] || [ "$code" -eq 143 ]; }; then
  scontrol requeue "$SLURM_JOB_ID" || echo "the job was not requeued; sbatch this script again, and it resumes" >&2
fi
@END@exit "$code"
"""

_ONE = "@COMMAND@ &"
# This script runs on the first node. The others get each the same command; they end when the first does.
_SEVERAL = """\
main=${SLURMD_NODENAME:-$(hostname)}  # this script runs on the first node
if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi  # srun takes it from here
srun --nodes=@OTHERS@ --ntasks=@OTHERS@ --ntasks-per-node=1 --relative=1 bash -c '
main=$1
shift
exec "$@" --machine-rank "$((SLURM_PROCID + 1))" --main-address "$main"
' bash "$main" @COMMAND@ &
others=$!
@COMMAND@ --machine-rank 0 --main-address "$main" &"""
_WATCH = """\
( # where srun could not start the others, this node would wait for half an hour
  while kill -0 "$others" 2> /dev/null; do sleep 1; done
  sleep 90
  if kill -TERM "$run" 2> /dev/null; then echo "srun ended, so the other nodes are gone: see what it said above" >&2; fi
) &
watch=$!
"""
_WAIT = """\
kill -- "-$watch" 2> /dev/null
for _ in {1..100}; do kill -0 "$others" 2> /dev/null || break; sleep 0.1; done  # the others end when the first one does
"""


@dataclass(frozen=True)
class Job:
    """What is to be run.

    Attributes:
        name: the name of the recipe.
        run: the run folder, absolute; what the job prints goes there, into slurm-JOB.log.
        folder: where the command runs, absolute.
        processes: how many train on a node, at most.
        gpus: how many GPUs a node needs.
        command: the command and its arguments.
        machines: how many nodes there are.
    """

    name: str
    run: Path
    folder: Path
    processes: int
    gpus: int
    command: Sequence[str]
    machines: int = 1


@dataclass(frozen=True)
class Printed:
    """The script of a checked recipe, and what the check found that is no error."""

    script: str
    notes: Sequence[str]
    warnings: Mapping[str, Sequence[str]]  # by stage


def of_recipe(
    loaded: Loaded, options: Options, run: RunDir, command: Sequence[str], asked: Sequence[str] = ()
) -> Printed:
    """Check a recipe as `align check` does, and write the script that runs it.

    The run folder is made, since SLURM writes a job's output only into a folder that is there. A process needs one GPU,
    except with the lab model.

    Raises:
        AlignError, Faults: all faults of the recipe at once, or one of `asked`.
    """
    options.check([plan.id for plan in loaded.stages])
    recipe, launches = loaded.recipe, [plan.launch for plan in loaded.stages]
    processes = max(launch.processes // launch.machines for launch in launches)
    machines = max(launch.machines for launch in launches)
    gpus = 0 if recipe.model.base == "lab" else processes
    text = script(Job(recipe.name, run.root, Path.cwd(), processes, gpus, command, machines), asked)
    found = prepare(loaded, weights=False, here=False)
    run.root.mkdir(parents=True, exist_ok=True)
    return Printed(text, found.notes, found.warnings)


def command(
    recipe: str,
    set: Sequence[str],
    run_dir: Path | None,
    options: Options,
    processes: int | None,
    machines: int | None = None,
) -> list[str]:
    """`align run` as it was asked for, by the interpreter that runs this."""
    words = [sys.executable, "-P", "-m", "align", "run", recipe]
    words += [word for one in set for word in ("--set", one)]
    given = {"--run-dir": run_dir, "--from": options.from_stage, "--only": options.only, "--processes": processes}
    given["--machines"] = machines
    words += [word for name, value in given.items() if value is not None for word in (name, str(value))]
    return [*words, *(["--fresh"] if options.fresh else [])]


def script(job: Job, asked: Sequence[str] = ()) -> str:
    """The batch script.

    Args:
        asked: options of sbatch as `time=08:00:00` or `exclusive`, which replace those of the same name; the last one
            of a name counts. `gpus-per-node=0` asks for no GPU.

    Raises:
        AlignError: an option is none, or one that the script depends on; the run folder cannot be named in a script.
    """
    own = dict(_option(text) for text in asked)
    if own.get("gpus-per-node") == "0":
        job = replace(job, gpus=0)
        del own["gpus-per-node"]
    lines = ["#!/bin/bash", "# Written by `align run --print-sbatch`. Edit these for your cluster, then: sbatch FILE"]
    lines.append(_line("time", own.pop("time", TIME)))
    lines += [_line(name, own.pop(name)) if name in own else f"##SBATCH --{name}={_EDIT[name]}" for name in _EDIT]
    lines += ["# These fit the run:", *(_line(name, value) for name, value in (_defaults(job, own) | own).items())]
    several = job.machines > 1
    body = _BODY.replace("@START@", _SEVERAL if several else _ONE).replace("@END@", _WAIT if several else "")
    body = body.replace("@WATCH@", _WATCH if several else "")
    body = body.replace("@FOLDER@", shlex.quote(str(job.folder))).replace("@CPUS@", str(CPUS * job.processes))
    body = body.replace("@PROCESSES@", str(job.processes)).replace("@MORE@", str(job.processes - 1))
    body = body.replace("@OTHERS@", str(job.machines - 1)).replace("@COMMAND@", shlex.join(job.command))
    return "\n".join(lines) + "\n" + body


def _defaults(job: Job, own: dict[str, str | None]) -> dict[str, str | None]:
    """What the script asks for, without what the user asks for in other words."""
    if _UNWRITABLE.search(str(job.run)):
        what = f"the run folder {str(job.run)!r} has a character that no #SBATCH line can hold"
        raise AlignError(what, "give another --run-dir, without quotes, backslashes and line breaks")
    found: dict[str, str | None] = {"job-name": job.name, "nodes": str(job.machines), "ntasks-per-node": "1"}
    if job.gpus and not set(_GPUS) & set(own):
        found["gpus-per-node"] = str(job.gpus)
    output = str(job.run / "slurm-").replace("%", "%%") + "%j.log"
    cores = {} if "cpus-per-gpu" in own else {"cpus-per-task": str(CPUS * job.processes)}
    return {
        **found,
        **cores,
        "signal": f"B:USR1@{SECONDS}",
        "requeue": None,
        "open-mode": "append",
        "output": output,
    }


def _line(name: str, value: str | None) -> str:
    return f"#SBATCH --{name}" + ("" if value is None else f"={shlex.quote(value)}")


def _option(text: str) -> tuple[str, str | None]:
    """`time=08:00:00` as its name and value.

    Raises:
        AlignError: it is no option of sbatch by its form, or one that the script depends on.
    """
    found = _OPTION.fullmatch(text)
    if found is None or _UNWRITABLE.search(text):
        what = f"--sbatch {text!r} is not an option of sbatch"
        raise AlignError(what, "write its long name without dashes, as in --sbatch time=08:00:00 or --sbatch exclusive")
    name, value = found["name"], found["value"]
    if name in ("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu"):
        what = f"--sbatch {text}: a run is one task on each node, which starts its processes itself"
        raise AlignError(what, "leave it out; --processes says how many train, and --machines on how many nodes")
    if name == "array":
        what = f"--sbatch {text}: the tasks of an array would share one run folder"
        raise AlignError(what, "print a script for each run, with a --run-dir of its own")
    if name == "signal" and not _SIGNAL.fullmatch(value or ""):
        what = f"--sbatch {text}: the script saves a checkpoint when it gets B:USR1"
        raise AlignError(what, f"write signal=B:USR1@SECONDS, the seconds before the time limit; it is {SECONDS}")
    return name, value
