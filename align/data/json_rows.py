"""Rows out of JSON and JSONL, each with the line where it begins.

The standard parser forgets where a value stood, so arrays are walked with `JSONDecoder.raw_decode`, one
element at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

from align.data.fields import FIELDS
from align.data.rows import DataFile, Found, Row, lines, unreadable, whole_text
from align.errors import AlignError, Place


class _RepeatedField(ValueError):
    """An object that gives one field twice; the standard library would keep the last one silently."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedField(next(name for name in names if names.count(name) > 1))
    return value


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object)
_BLANK: Final = re.compile(r"[ \t\n\r]*")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_PLAINER: Final = {
    "Expecting value": "expected a value",
    "Expecting property name enclosed in double quotes": "expected a field name in double quotes",
    "Expecting ',' delimiter": "expected a comma or the closing bracket",
    "Expecting ':' delimiter": "expected a colon after the field name",
    "Unterminated string starting at": "the string that starts here has no closing quote",
    "Illegal trailing comma before end of object": "there is an extra comma before }",
    "Illegal trailing comma before end of array": "there is an extra comma before ]",
    "Invalid control character at": "a line break or tab inside a string must be written as \\n or \\t",
    "Invalid \\escape": "a backslash inside a string must be written as \\\\",
}
"""What the parser wanted, in the words of somebody who did not write the parser."""


@dataclass
class _Json:
    """A JSON text; remembers how far lines were counted, so that counting them stays linear."""

    text: str
    label: str
    first_line: int = 1
    counted_to: int = 0
    newlines: int = 0

    def place(self, at: int, *, with_column: bool = False) -> Place:
        if at < self.counted_to:
            self.counted_to = self.newlines = 0
        self.newlines += self.text.count("\n", self.counted_to, at)
        self.counted_to = at
        column = at - self.text.rfind("\n", 0, at) if with_column else None
        return Place(self.label, self.first_line + self.newlines, column)

    def skip(self, at: int) -> int:
        """The offset of the next character at or after `at` that is not blank."""
        match = _BLANK.match(self.text, at)
        return match.end() if match else at

    def malformed(self, at: int, wanted: str) -> AlignError:
        return AlignError(f"malformed JSON: {wanted}", "correct the file there", place=self.place(at, with_column=True))

    def value(self, at: int) -> tuple[Any, int]:
        """The value that begins at `at` and the offset after it; raises AlignError."""
        try:
            value, end = _DECODER.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            wanted = next((plain for start, plain in _PLAINER.items() if error.msg.startswith(start)), error.msg)
            raise self.malformed(error.pos, wanted) from None
        except _RepeatedField as error:
            what = f"the row has the field '{error}' twice"
            raise AlignError(what, "keep one of the two", place=self.place(at)) from None
        except (RecursionError, ValueError):
            what = "a value of the row is nested too deeply or has too many digits"
            raise AlignError(what, "shorten it", place=self.place(at)) from None
        if _SURROGATE.search(self.text, at, end):
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                what = "the row contains half of a surrogate pair, which is not a valid character"
                raise AlignError(what, "write the complete character", place=self.place(at)) from None
        return value, end

    def row(self, value: Any, at: int) -> Found:
        """The row that `value`, which begins at `at`, is; or the fault that it is none."""
        if isinstance(value, dict):
            return Row(value, self.place(at))
        kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
        what = f"the row is {kinds.get(type(value), 'a number')}, not an object"
        return AlignError(what, 'write each row as an object: {"field": ...}', place=self.place(at))

    def expect_end(self, at: int, of: str) -> None:
        end = self.skip(at)
        if end < len(self.text):
            raise self.malformed(end, f"expected the end of the {of}, but there is more")

    def elements(self, at: int) -> Generator[Found, None, int]:
        """The rows of the array that opens at `at`; returns the offset after it. Raises AlignError."""
        at = self.skip(at + 1)
        if self.text[at : at + 1] == "]":
            return at + 1
        while True:
            value, end = self.value(at)
            yield self.row(value, at)
            at = self.skip(end)
            if self.text[at : at + 1] == "]":
                return at + 1
            if self.text[at : at + 1] != ",":
                raise self.malformed(at, "expected a comma or the closing bracket ]")
            comma, at = at, self.skip(at + 1)
            if self.text[at : at + 1] == "]":
                raise self.malformed(comma, "there is an extra comma before ]")

    def lists(self, at: int) -> list[int]:
        """Offsets of the lists directly inside the well-formed object that opens at `at`."""
        found = []
        at = self.skip(at + 1)
        while self.text[at] != "}":
            _, at = self.value(self.skip(at + 1) if self.text[at] == "," else at)
            at = self.skip(self.skip(at) + 1)  # over the colon
            if self.text[at] == "[":
                found.append(at)
            _, at = self.value(at)
            at = self.skip(at)
        return found


def read_json_lines(file: DataFile) -> Iterator[Found]:
    """One object a line. An array that was given the wrong ending is read as an array."""
    for number, text in lines(file):
        if isinstance(text, AlignError):
            yield text
        elif number == 1 and text.lstrip().startswith("[") and not _whole(text):
            yield from read_json(file)
            return
        else:
            yield _line(_Json(text, file.label, first_line=number))


def _line(source: _Json) -> Found:
    try:
        start = source.skip(0)
        value, end = source.value(start)
        source.expect_end(end, "line")
        return source.row(value, start)
    except AlignError as error:
        return error


def read_json(file: DataFile) -> Iterator[Found]:
    """An array of objects, an object with one list inside, a single object, or lines in spite of the ending."""
    try:
        source = _Json(whole_text(file), file.label)
        start = source.skip(0)
        if start == len(source.text):
            return
        if source.text[start] == "[":
            end = yield from source.elements(start)
            source.expect_end(end, "file")
        elif _lines_after_all(source.text[start:]):
            yield from read_json_lines(file)
        else:
            yield from _object_rows(source, start)
    except AlignError as error:
        yield unreadable(error)


def _object_rows(source: _Json, start: int) -> Iterator[Found]:
    value, end = source.value(start)
    source.expect_end(end, "file")
    if not isinstance(value, dict) or FIELDS & value.keys():
        yield source.row(value, start)
        return
    found = source.lists(start)
    if len(found) == 1:
        yield from source.elements(found[0])
    elif not found:
        yield source.row(value, start)
    else:
        what = f"the file is one object with {len(found)} lists, and it is unclear which of them has the rows"
        raise AlignError(what, "write an array of objects, or one object per line", place=source.place(start))


def _lines_after_all(text: str) -> bool:
    """Whether a text that begins with an object is one object a line: its first line is whole and there are more."""
    first, _, rest = text.partition("\n")
    looks_whole = first.rstrip().endswith("}") and rest.lstrip().startswith("{")
    return bool(rest.strip()) and text.startswith("{") and (looks_whole or _whole(first))


def _whole(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
