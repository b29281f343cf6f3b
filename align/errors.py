"""Expected failures. Each is one sentence that says what is wrong and one that says the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum


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
