"""A row and its place, and the lines of a text file: what every reader shares."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

from align.errors import AlignError, Place

_BOM: Final = b"\xef\xbb\xbf"
_WIDE_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
_NUL: Final = "the line contains NUL characters: the file is UTF-16, or no text"
_SAVE_AS_UTF8: Final = "save the file as UTF-8"


@dataclass(frozen=True)
class Row:
    """One record as it stands in the data, and where it stands.

    Attributes:
        filled: whether fields that the record does not have were filled with nulls, in its structs too, as Arrow does.
    """

    value: dict[str, Any]
    place: Place
    filled: bool = False


@dataclass(frozen=True)
class RecordPlace(Place):
    """A row of something that has no lines, such as Parquet; `row` counts from 1."""

    row: int = 1

    def __str__(self) -> str:
        return f"{self.file}: row {self.row}"


@dataclass(frozen=True)
class DataFile:
    """A file to read and the short name that messages give it."""

    path: Path
    label: str


class Unreadable(AlignError):
    """A fault after which no more of its file is read."""


def unreadable(error: AlignError) -> Unreadable:
    """A fault that a reader cannot read on after."""
    return Unreadable(error.what, error.remedy, place=error.place, exit=error.exit)


Found: TypeAlias = Row | AlignError
"""What a reader yields: a row, or the fault that spoils one."""


def lines(file: DataFile) -> Iterator[tuple[int, str | AlignError]]:
    """Number and text of each line that is not blank; only \\n ends a line, as JSONL has it."""
    with _open(file) as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                text = (raw.removeprefix(_BOM) if number == 1 else raw).decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                fault = _not_utf8(file.label, number, error)
                if number == 1 and raw.startswith(_WIDE_BOMS):
                    yield number, unreadable(fault)  # every other line would be reported as well
                    return
                yield number, fault
                continue
            if "\0" in text:
                yield number, Unreadable(_NUL, _SAVE_AS_UTF8, place=Place(file.label, number))
                return
            if text.strip():
                yield number, text


def whole_text(file: DataFile) -> str:
    """The text of a file without its byte order mark; raises AlignError where it is not UTF-8 text."""
    with _open(file) as stream:
        raw = stream.read().removeprefix(_BOM)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(file.label, raw.count(b"\n", 0, error.start) + 1, error) from None
    if "\0" in text:
        raise AlignError(_NUL, _SAVE_AS_UTF8, place=Place(file.label, text.count("\n", 0, text.index("\0")) + 1))
    return text


def _open(file: DataFile) -> BinaryIO:
    suffix = file.path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(file.path))
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(file.path), compression="zstd"))
    return file.path.open("rb")


def _not_utf8(label: str, line: int, error: UnicodeDecodeError) -> AlignError:
    if line == 1 and error.object.startswith(_WIDE_BOMS):
        return AlignError("the file is UTF-16, not UTF-8", _SAVE_AS_UTF8, place=Place(label))
    what = f"the byte 0x{error.object[error.start]:02x} is not UTF-8"
    return AlignError(what, _SAVE_AS_UTF8, place=Place(label, line))
