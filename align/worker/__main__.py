"""The child process: executes tickets, one after the other, with the stack imported once.

`python -m align.worker RUN_DIR`, started by align/runner/launch.py. Each ticket ends with an outcome, written last,
or an error.
The parent keeps the other end of standard input; when it is gone, so is the reason to go on.

`python -m align.worker RUN_DIR STAGE ...` executes the tickets of these stages and ends, without a parent.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from align import report
from align.errors import AlignError, Exit
from align.parameterization import chain
from align.run_folder import files, messages
from align.run_folder.comparison import ComparisonRequest
from align.run_folder.messages import Compare, Execute, Finish, Interpolate
from align.run_folder.paths import RunDir, StageDir
from align.run_folder.records import Failure, Ticket

POLL_SECONDS = 0.05
_asked = threading.Event()


def main() -> None:
    """Execute the tickets of a run's queue until it says that it is done."""
    run, stages = RunDir(Path(sys.argv[1])), sys.argv[2:]
    if not stages:
        threading.Thread(target=_end_with_parent, args=(run,), daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    code = Exit.DONE
    for message in map(_by_hand, stages) if stages else _messages(run):
        if isinstance(message, Compare):
            _compare(run, message.branches)
            continue
        ticket = Ticket.model_validate(files.read_json(run.stage(message.stage).ticket))
        code = execute_ticket(run, ticket, interpolated=isinstance(message, Interpolate))
        if code != Exit.DONE:
            break
    _leave(code)


def _end_with_parent(run: RunDir) -> None:
    """Standard input ends when the parent dies: a run without one must not go on writing."""
    while os.read(0, 1024):
        pass
    if _rank() == 0:
        report.break_off(run.root)  # without taking the run's lock, which a parent of a new attempt may want just now
    os._exit(Exit.STAGE_FAILED)


def _stop(number: int, frame: FrameType | None) -> None:
    if _asked.is_set():  # asked twice: now
        os._exit(Exit.INTERRUPTED)
    _asked.set()


def _messages(run: RunDir) -> Iterator[Execute | Compare | Interpolate]:
    """What the parent asks for, in order, until it says that there is nothing more."""
    number = 1
    while True:
        message = messages.receive(run, number)
        if message is None:
            if _asked.is_set() or run.stop.is_file():
                _leave(Exit.INTERRUPTED)
            time.sleep(POLL_SECONDS)
            continue
        if isinstance(message, Finish):
            return
        yield message
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
        gc.disable()  # hundreds of thousands of objects come up, and all of them stay
        from align.stage.callbacks import Interrupted
        from align.worker import execute, interpolate  # torch from here on

        gc.freeze()
        gc.enable()
    except ImportError as error:
        return _failed(
            here,
            AlignError(
                f"the training stack cannot be imported: {error}",
                "make install, or pip install align-suite",
                exit=Exit.MACHINE,
            ),
        )
    try:
        (interpolate if interpolated else execute).do(run, ticket, lambda: _asked.is_set() or run.stop.is_file())
    except Interrupted:
        return Exit.INTERRUPTED
    except AlignError as error:
        return _failed(here, error)
    except Exception as error:
        traceback.print_exc()
        if _is_out_of_memory(error):
            return _failed(here, _out_of_memory(ticket))
        return _failed(here, _unexpected(error, ticket), traceback.format_exc())
    return Exit.DONE


def _is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, of torch's own memory on a CPU, or of Python."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _out_of_memory(ticket: Ticket) -> AlignError:
    doubled = "gradient_accumulation_steps"
    if "steps_per_generation" in ticket.training:  # a rollout stays as large as it was
        doubled = f"{doubled} and steps_per_generation"
    ways = [f"halve training.per_device_train_batch_size and double {doubled}", "turn gradient_checkpointing on"]
    if not chain.Layer.of(ticket.parameterization, ticket.stage).quantized:
        ways.append("use qlora")
    remedy = f"{', '.join(ways[:-1])}, or {ways[-1]}"
    return AlignError(f"stage '{ticket.stage}' ran out of memory", remedy, exit=Exit.STAGE_FAILED)


def _unexpected(error: Exception, ticket: Ticket) -> AlignError:
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    what = f"stage '{ticket.stage}' failed: {type(error).__name__}: {text}".rstrip(": ")
    return AlignError(what, "the traceback is in the log of the stage", exit=Exit.STAGE_FAILED)


def _failed(here: StageDir, error: AlignError, trace: str | None = None) -> Exit:
    if not here.error.is_file():  # of several processes, the first that failed knows why
        failure = Failure(what=error.what, remedy=error.remedy, exit=int(error.exit), traceback=trace, rank=_rank())
        files.write_json(here.error, failure.written())
    return error.exit


def redirect(here: StageDir) -> None:
    """What libraries print goes into the log of the stage."""
    here.root.mkdir(parents=True, exist_ok=True)
    log = here.log if _rank() == 0 else here.log.with_name(f"log.rank{_rank()}.txt")
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _leave(code: Exit) -> None:
    """End at once: an orderly teardown of the stack costs two CPU seconds and changes nothing that is written."""
    if "torch" in sys.modules and int(os.environ.get("WORLD_SIZE", "1")) > 1:
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
    main()
