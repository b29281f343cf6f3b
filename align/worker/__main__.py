"""The child process: executes tickets, one after the other, with the stack imported once.

`python -m align.worker RUN_DIR`, started by align/runner/launch.py. Each ticket ends with an outcome, written last,
or an error.
The parent keeps the other end of standard input; when it is gone, so is the reason to go on.

`python -m align.worker RUN_DIR STAGE ...` executes the tickets of these stages and ends, without a parent.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from align import report
from align.errors import AlignError, Exit, OutOfMemory, of_the_machine
from align.run_folder import files, heartbeats, messages, secrets
from align.run_folder.comparison import ComparisonRequest
from align.run_folder.messages import Compare, Execute, Finish, Interpolate
from align.run_folder.paths import RunDir
from align.run_folder.records import Failure, Shortage, Ticket
from align.run_folder.stage_dir import StageDir
from align.worker import memory, signals

POLL_SECONDS = 0.05


def main() -> None:
    """Execute the tickets of a run's queue until it says that it is done."""
    run, stages = RunDir(Path(sys.argv[1])), sys.argv[2:]
    if not stages:
        threading.Thread(target=_end_with_parent, args=(run,), daemon=True).start()
        heartbeats.begin(run, _rank(), _world())
    signals.listen()
    with run.locked() if stages and _rank() == 0 else nullcontext():  # otherwise the parent holds it
        if stages and _rank() == 0:
            run.stop.unlink(missing_ok=True)  # of a parent that was killed
        _leave(_execute(run, stages))


def _execute(run: RunDir, stages: list[str]) -> Exit:
    """Execute what the parent asks for, or the tickets of these stages."""
    code = Exit.DONE
    for message in map(_by_hand, stages) if stages else _messages(run):
        if isinstance(message, Compare):
            _compare(run, message.branches)
            continue
        here = run.stage(message.stage)
        ticket = Ticket.model_validate(files.read_json(here.ticket))
        if ticket.resume_from is not None and not (here.root / ticket.resume_from).is_dir():  # by hand, once it is done
            ticket.resume_from = None
        code = execute_ticket(run, ticket, interpolated=isinstance(message, Interpolate))
        if code != Exit.DONE:
            break
    return code


def _end_with_parent(run: RunDir) -> None:
    """Standard input ends when the parent dies: a run without one must not go on writing."""
    while os.read(0, 1024):
        pass
    if _rank() == 0:
        report.break_off(run.root)  # without taking the run's lock, which a parent of a new attempt may want just now
    os._exit(Exit.STAGE_FAILED)


def _messages(run: RunDir) -> Iterator[Execute | Compare | Interpolate]:
    """What the parent asks for, in order, until it says that there is nothing more."""
    number = 1
    while True:
        message = messages.receive(run, number)
        if message is None:
            if signals.asked(run):
                _leave(Exit.INTERRUPTED)
            time.sleep(POLL_SECONDS)
            continue
        if isinstance(message, Finish):
            return
        if isinstance(message, Compare):
            heartbeats.beat("start-up", step=0, stage="")
        yield message
        heartbeats.beat("waiting")
        number += 1


def _by_hand(stage: str) -> Execute | Compare | Interpolate:
    """What somebody asks for who started the worker without a parent."""
    return Execute(stage=stage)


def _compare(run: RunDir, branches: ComparisonRequest) -> None:
    """Compare the branches; only the first process does."""
    from align.worker.compare import compare

    gc.collect()  # the last stage's model and optimizer are held by cycles
    if _rank() == 0:
        compare(run, branches)


def execute_ticket(run: RunDir, ticket: Ticket, *, interpolated: bool = False) -> Exit:
    """Execute a stage, or interpolate the update of one that is done."""
    here = run.stage(ticket.stage)
    redirect(here)
    try:
        return _do(run, ticket, interpolated=interpolated)
    except AlignError as error:
        if isinstance(error, OutOfMemory):
            traceback.print_exc()
        return _failed(here, error)
    except SystemExit as error:
        traceback.print_exc()
        return _failed(here, _left(error, ticket), traceback.format_exc())
    except Exception as error:
        traceback.print_exc()
        if memory.ran_out(error):
            return _failed(here, memory.failure(ticket))
        if full := _of_the_disk(error):
            return _failed(here, full)
        if signals.asked(run) and _is_secondhand(error):
            return Exit.INTERRUPTED
        return _failed(here, _unexpected(error, ticket), traceback.format_exc(), secondhand=_is_secondhand(error))


def _do(run: RunDir, ticket: Ticket, *, interpolated: bool) -> Exit:
    """The same; raises what goes wrong."""
    heartbeats.beat("start-up", step=0, stage=ticket.stage)
    try:
        _import_stack()
        from align.stage.callbacks import Interrupted
        from align.worker import execute, interpolate
    except ImportError as error:
        what = f"the training stack cannot be imported: {error}"
        raise AlignError(what, "make install, or pip install align-suite", exit=Exit.MACHINE) from None
    if signals.asked(run):
        return Exit.INTERRUPTED
    try:
        (interpolate if interpolated else execute).do(run, ticket, lambda: signals.asked(run))
    except Interrupted:
        return Exit.INTERRUPTED
    return Exit.DONE


@cache
def _import_stack() -> None:
    """Import torch and what stands on it: hundreds of thousands of objects that all stay, and that need not be gone
    through for cycles. Before the first ticket alone: of those after it, the model before is still held by cycles, and
    would stay as well."""
    gc.disable()
    try:
        from align.worker import execute, interpolate  # noqa: F401 - imported to stay

        gc.freeze()
    finally:
        gc.enable()


def _of_the_disk(error: Exception) -> AlignError | None:
    """A disk that is full, or cannot be written; libraries in other languages say it in words."""
    if not isinstance(error, OSError) and os.strerror(errno.ENOSPC) in str(error):
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return of_the_machine(error) if isinstance(error, OSError) else None


def _is_secondhand(error: Exception) -> bool:
    """Whether another process is gone, one of those that train or one that loads rows; and this one only tells so."""
    if "torch" not in sys.modules:  # it may be what could not be imported
        return False
    import torch

    text = str(error)
    of_peers = isinstance(error, torch.distributed.DistError) or "/gloo/" in text
    return of_peers or (text.startswith("DataLoader worker") and "is killed by signal" in text)


def _unexpected(error: Exception, ticket: Ticket) -> AlignError:
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    where = f" in rank {_rank()}" if _world() > 1 else ""
    what = f"stage '{ticket.stage}' failed{where}: {type(error).__name__}: {text}".rstrip(": ")
    return AlignError(what, "the traceback is in the log of the stage", exit=Exit.STAGE_FAILED)


def _left(error: SystemExit, ticket: Ticket) -> AlignError:
    """A library or the program of a stage asks for the end of the process."""
    who = f"rank {_rank()} of {_world()}" if _world() > 1 else "its process"
    what = f"stage '{ticket.stage}' failed: {who} was ended with sys.exit({error.code!r}) before the stage was done"
    return AlignError(what, "the traceback is in the log of the stage", exit=Exit.STAGE_FAILED)


def _failed(here: StageDir, error: AlignError, trace: str | None = None, *, secondhand: bool = False) -> Exit:
    """Tell the parent why; of several processes, it knows which failed first."""
    told: dict[str, Any] = {"secondhand": True} if secondhand else {}
    told |= {"out_of_memory": Shortage(phase=error.phase, step=error.step)} if isinstance(error, OutOfMemory) else {}
    what, remedy, trace = secrets.hidden(error.what), secrets.hidden(error.remedy), trace and secrets.hidden(trace)
    failure = Failure(what=what, remedy=remedy, exit=int(error.exit), traceback=trace, rank=_rank(), **told)
    try:
        files.write_json(here.error_of(_rank()), failure.written())
    except OSError:  # the disk is full: the exit code says so, and the log if it can
        print(error, file=sys.stderr)
    return error.exit


def redirect(here: StageDir) -> None:
    """What libraries print goes into the log of the stage."""
    here.root.mkdir(parents=True, exist_ok=True)
    log = here.log_of(_rank())
    sys.stdout.flush()
    sys.stderr.flush()
    if log.is_symlink():  # what it points to is not the run's
        log.unlink()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _leave(code: Exit) -> None:
    """End at once: an orderly teardown of the stack costs two CPU seconds and changes nothing that is written."""
    heartbeats.leave(code)
    if code == Exit.DONE and _world() > 1 and "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(json.dumps({"usage": "python -m align.worker RUN_DIR [STAGE ...]"}), file=sys.stderr)
        sys.exit(Exit.BAD_INPUT)
    try:
        main()
    except AlignError as error:  # started by hand, in a run that is under way
        print(error, file=sys.stderr)
        sys.exit(error.exit)
