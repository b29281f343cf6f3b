"""How a command ends: its exit code, and what is said of an expected failure."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.cli import printed
from align.errors import AlignError, Exit, Faults, of_the_machine
from align.runner.lines import line

SHOWN = 50  # faults of one input


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; an expected failure is shown as its sentences, without a traceback."""
    try:
        _assert_folder()
        command()
    except AlignError as error:
        faults = error.faults if isinstance(error, Faults) else [error]
        for fault in faults[:SHOWN]:
            printed.errors().print(line(str(fault), "error", "red"), soft_wrap=True)
        if len(faults) > SHOWN:
            printed.errors().print(line(f"and {len(faults) - SHOWN:,} more, which are not shown", "error", "red"))
        return error.exit
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        sys.stderr.close()
        return Exit.DONE
    except OSError as error:
        expected = in_the_way(error) if isinstance(error, FileExistsError) else of_the_machine(error)
        if expected is None:
            raise
        printed.errors().print(line(str(expected), "error", "red"))
        return expected.exit
    except SystemExit as leave:
        if leave.code == Exit.INTERRUPTED:  # typer takes Ctrl-C itself, and says nothing
            return _interrupted()
        return leave.code if isinstance(leave.code, int) else Exit.BAD_INPUT
    return Exit.DONE


def in_the_way(error: FileExistsError) -> AlignError:
    """A file that stands where a folder of a run is to be made."""
    what = f"'{error.filename}' cannot be made as a folder: a file stands there"
    return AlignError(what, "move that file away", exit=Exit.MACHINE)


def _assert_folder() -> None:
    """Raises AlignError where the current folder is gone: no path could be found from it."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise AlignError("the current folder was deleted", "change to one that is there, as with `cd`") from None


def _interrupted() -> int:
    printed.errors().print("interrupted; run the same command again to resume")
    return Exit.INTERRUPTED
