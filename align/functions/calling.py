"""A user's function: imported from its file, and called with the arguments that it takes."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.errors import AlignError, Exit


def load(path: Path, name: str, purpose: str) -> Callable[..., Any]:
    """A function out of a user's file.

    Args:
        purpose: what it is, for messages, such as `reward function`.

    Raises:
        AlignError: the file cannot be imported.
    """
    called = f"align_functions_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(called, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:  # as for a script: it may import what lies beside it
        sys.path.append(str(path.parent))
    sys.modules[called] = module  # where dataclasses and pickle look for it
    process = os.getpid()
    try:
        spec.loader.exec_module(module)
        if os.getpid() != process:  # the file forks, and two would train
            os._exit(1)
    except (Exception, SystemExit) as error:
        del sys.modules[called]
        what = f"the file of the {purpose} cannot be imported: {type(error).__name__}: {error}"
        raise AlignError(what, "correct it", exit=Exit.STAGE_FAILED) from error
    return _in_one_process(getattr(module, name))


def _in_one_process(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; a process that it forks and that comes back from it ends here, or two would train."""

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        process = os.getpid()
        try:
            return function(*arguments, **named)
        except SystemExit as asked:
            if os.getpid() != process:
                os._exit(asked.code if isinstance(asked.code, int) else int(asked.code is not None))
            raise
        finally:
            if os.getpid() != process:
                os._exit(1)

    return called


def taken(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function takes."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def line(error: BaseException, path: Path) -> str:
    """Where in the user's file an error came up."""
    number, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            number = trace.tb_lineno
        trace = trace.tb_next
    return f"line {number}" if number else "outside the file"


def raised(error: BaseException) -> str:
    """`ValueError: what it says`, of the first line."""
    text = str(error).encode("utf-8", "backslashreplace").decode("utf-8")  # half a character cannot be written
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}".rstrip(": ")
