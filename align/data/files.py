"""Rows out of files, each with its true place: the reader of every ending, and CSV, Parquet and plain text.

A fault is yielded in the place of the row it spoils and reading goes on where the format allows it, so that somebody
with three broken lines hears of all three at once.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Final

from align.data.json_rows import read_json, read_json_lines
from align.data.rows import DataFile, Found, RecordPlace, Row, Unreadable, lines, unreadable, whole_text
from align.errors import AlignError, Place

COMPRESSED: Final = (".gz", ".zst")
_LONGEST_CELL: Final = 2**31 - 1
_ADD_ROWS: Final = "add rows, or remove the file from the recipe"


def read_file(file: DataFile) -> Iterator[Found]:
    """The rows of one file in order; a fault stands in the place of the row it spoils."""
    place = Place(file.label)
    try:
        reader = READERS[ending(file.path.name)]
    except KeyError:
        what = (
            f"the file extension '{file.path.suffix}' is not supported"
            if file.path.suffix
            else "the file has no extension"
        )
        yield Unreadable(what, f"supported are {SUPPORTED}", place=place)
        return
    try:
        if not file.path.stat().st_size:
            yield Unreadable("the file is empty", _ADD_ROWS, place=place)
            return
        any_found = False
        for found in reader(file):
            any_found = True
            yield found
        if not any_found:
            yield Unreadable("the file has no rows", _ADD_ROWS, place=place)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        yield Unreadable("the gzip file is incomplete or damaged", "copy or compress it again", place=place)
    except OSError as error:
        if file.path.suffix.lower() == ".zst" and error.errno is None:  # pyarrow's, of what it decompresses
            yield Unreadable("the zstd file is incomplete or damaged", "copy or compress it again", place=place)
            return
        what = f"the file cannot be read: {error.strerror or error}"
        yield Unreadable(what, "check that it is complete and that you have permission to read it", place=place)


def ending(name: str) -> str:
    """The ending that decides the reader: `.jsonl` for `x.jsonl`, `x.jsonl.gz` and `x.jsonl.zst`."""
    path = PurePath(name.lower())
    if path.suffix in COMPRESSED and PurePath(path.stem).suffix != ".parquet":
        return PurePath(path.stem).suffix
    return path.suffix


def _read_passages(file: DataFile) -> Iterator[Found]:
    for number, text in lines(file):
        yield text if isinstance(text, AlignError) else Row({"text": text}, Place(file.label, number))


def _read_csv(file: DataFile) -> Iterator[Found]:
    yield from _read_table(file, ",")


def _read_tsv(file: DataFile) -> Iterator[Found]:
    yield from _read_table(file, "\t")


def _read_table(file: DataFile, delimiter: str) -> Iterator[Found]:
    """Records under a header; a record's place is the line where it begins, whatever line breaks it quotes."""
    csv.field_size_limit(_LONGEST_CELL)
    begin = 1
    try:
        # strict, because the lenient parser reads everything after a forgotten quote as one cell
        records = csv.reader(io.StringIO(whole_text(file), newline=""), delimiter=delimiter, strict=True)
        header: list[str] = []
        for cells in records:
            place, begin = Place(file.label, begin), records.line_num + 1
            if not cells:
                continue
            if not header:
                header = _header(cells, place)
            elif len(cells) == len(header):
                yield Row(dict(zip(header, cells, strict=True)), place)
            else:
                what = (
                    f"the record has {_count(len(cells), 'cell')}, but the header has {_count(len(header), 'column')}"
                )
                yield AlignError(what, "quote values that contain the separator or a line break", place=place)
    except csv.Error as error:
        what = f"the record is not well-formed: {error}"
        remedy = 'put values in double quotes, and write a double quote inside a value as ""'
        yield Unreadable(what, remedy, place=Place(file.label, begin))
    except AlignError as error:
        yield unreadable(error)


def _header(cells: list[str], place: Place) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise AlignError(f"the header has the column '{twice}' twice", "rename one of the two", place=place)
    return names


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _read_parquet(file: DataFile) -> Iterator[Found]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file.path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(value, RecordPlace(file.label, row=number), filled=True)
    except UnicodeDecodeError:
        what = "a string in one of the next rows is not valid UTF-8"
        yield Unreadable(what, "write the file again", place=RecordPlace(file.label, row=number + 1))
    except (pyarrow.ArrowException, OSError) as error:
        what = f"the file is not readable Parquet: {str(error).splitlines()[0].rstrip('.')}"
        yield Unreadable(what, "download or write it again", place=Place(file.label))


READERS: Final[dict[str, Callable[[DataFile], Iterator[Found]]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_passages,
}
"""The reader of each ending."""

SUPPORTED: Final = f"{', '.join(READERS)}; all but .parquet may be followed by {' or '.join(COMPRESSED)}"
"""What can be read, for messages."""
