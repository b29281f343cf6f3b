"""Expected failures. Each is one sentence that says what is wrong and one that says the way out."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """Exit codes of the `align` command."""

    DONE = 0
    STAGE_FAILED = 1
    BAD_INPUT = 2
    GATE = 3
    MACHINE = 4
    INTERRUPTED = 130


@dataclass(frozen=True)
class Place:
    """Where in a file a fault stands; `line` and `column` count from 1, None where a file has none."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


class AlignError(Exception):
    """An expected failure, shown without a traceback.

    Args:
        what: one sentence, without a full stop: what is wrong.
        remedy: one sentence, without a full stop: what to do about it.
        place: the file, line and column, where there is one.
        exit: the exit code of the command.
    """

    def __init__(self, what: str, remedy: str = "", *, place: Place | None = None, exit: Exit = Exit.BAD_INPUT) -> None:
        self.what, self.remedy, self.place, self.exit = what, remedy, place, exit
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.place}: {self.what}" if self.place else self.what
        return f"{head}\n  -> {self.remedy}" if self.remedy else head


class OutOfMemory(AlignError):
    """A stage's training took more memory than there was.

    Args:
        phase: as heartbeats have it.
        step: the last one that was made.
    """

    def __init__(self, what: str, remedy: str, phase: str, step: int, exit: Exit) -> None:
        self.phase, self.step = phase, step
        super().__init__(what, remedy, exit=exit)


class Faults(AlignError):
    """All faults of one input at once, so that nobody mends them one run at a time."""

    def __init__(self, faults: list[AlignError]) -> None:
        self.faults = faults
        super().__init__("\n".join(str(fault) for fault in faults), exit=max(fault.exit for fault in faults))


class FaultList:
    """Collects faults while an input is read; `raise_any()` raises them together.

    >>> faults = FaultList()
    >>> with faults.collect():
    ...     raise AlignError("the file is empty", "add a row")
    >>> len(faults.found)
    1
    """

    def __init__(self) -> None:
        self.found: list[AlignError] = []

    def add(self, what: str, remedy: str = "", place: Place | None = None) -> None:
        self.found.append(AlignError(what, remedy, place=place))

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Take an AlignError raised inside the block into the list and go on after it."""
        try:
            yield
        except Faults as many:
            self.found.extend(many.faults)
        except AlignError as one:
            self.found.append(one)

    def raise_any(self) -> None:
        """Raise what was found: one fault as itself, several as `Faults`."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise Faults(self.found)


_AGAIN = "and run the same command again"
_PERMISSION = "give yourself the permission, or choose another file or folder"
_FILES = f"raise the limit of open files (`ulimit -n`), {_AGAIN}"
_OF_THE_MACHINE = {  # what could not be done, and what to do
    errno.ENOSPC: ("written", f"free some disk space {_AGAIN}"),
    errno.EDQUOT: ("written", f"free some of your quota {_AGAIN}"),
    errno.EROFS: ("written", "choose a folder on a writable disk"),
    errno.EACCES: ("opened", _PERMISSION),
    errno.EPERM: ("opened", _PERMISSION),
    errno.ENAMETOOLONG: ("opened", "choose a shorter name"),
    errno.ELOOP: ("opened", "replace the link by what it is to point to"),
    errno.EISDIR: ("opened as a file", "move it away"),
    errno.ENOTDIR: ("opened as a folder", "move it away"),
    errno.EIO: ("opened or written", f"the disk failed: see the system's log (`dmesg`), {_AGAIN} on a disk that works"),
    errno.EMFILE: ("opened", _FILES),
    errno.ENFILE: ("opened", _FILES),
}


def of_the_machine(error: OSError) -> AlignError | None:
    """A disk that is full, failing or read-only, or a limit of the system, as an expected failure; None for others."""
    done, remedy = _OF_THE_MACHINE.get(error.errno or 0, ("", ""))
    if error.errno in (errno.EPERM, errno.EIO) and not error.filename:  # of a process, or of a terminal that is gone
        return None
    where = f"'{error.filename}'" if error.filename else "the output"
    return AlignError(f"{where} cannot be {done}: {error.strerror}", remedy, exit=Exit.MACHINE) if remedy else None


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word a mistyped one most likely meant."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what there is."""
    options = list(known)
    close = nearest(word, options)
    return f"did you mean '{close}'?" if close else f"choose one of: {', '.join(options)}"


def shown(value: Any) -> str:
    """A value as its author would name it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return repr(value)


def one_of(kinds: Sequence[str]) -> str:
    """`text, a mapping or a list`; a whole number goes without saying where a number may stand."""
    said = [kind for kind in kinds if kind != "a whole number" or "a number" not in kinds]
    return " or ".join(filter(None, (", ".join(said[:-1]), said[-1])))
