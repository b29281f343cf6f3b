"""`align data convert`: rows of any format that align reads, as JSONL in its normal form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from align.data.rows import Unreadable
from align.errors import AlignError
from align.inspection.look import line, rejected
from align.inspection.survey import Seen


@dataclass
class Written:
    """How many rows were written, and how many were left out."""

    rows: int = 0
    rejected: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # what rows have besides, by name


def convert(seen: Iterable[Seen], to: Path, *, skip: bool = False, rejects: Path | None = None) -> Written:
    """Write the examples of some rows to a JSONL file, which appears whole or not at all.

    Args:
        skip: leave bad rows out; a fault after which the rest of a file cannot be read stops it all the same.
        rejects: a JSONL file for what was skipped: place, error, remedy and, where it could be read, the row.

    Raises:
        AlignError: a fault that stops it, no good row, or a file name of another kind.
    """
    for file in (to, rejects):
        if file is not None and file.suffix != ".jsonl":
            raise AlignError(f"'{file}' would be written as JSONL", "give a name that ends in .jsonl")
    done, temporary = Written(), to.with_name(f".{to.name}.part")
    with ExitStack() as stack:
        stack.callback(temporary.unlink, missing_ok=True)
        sink = stack.enter_context(temporary.open("w", encoding="utf-8"))
        refused = stack.enter_context(rejects.open("w", encoding="utf-8")) if rejects is not None else None
        for one in seen:
            if not isinstance(one.found, AlignError):
                sink.write(line(one.found.value))
                done.rows += 1
                done.dropped.update(one.found.unused)
            elif not skip or isinstance(one.found, Unreadable) or one.found.place is None:
                raise one.found
            else:
                done.rejected += 1
                if refused is not None:
                    refused.write(line(rejected(one)))
        if not done.rows:
            raise AlignError("no row could be converted", "see what is wrong with them: align data check")
        sink.close()
        temporary.replace(to)
    return done
