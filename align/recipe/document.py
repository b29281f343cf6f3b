"""A YAML file that remembers where everything stands, and what the command line changed in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from align.errors import AlignError, Place
from align.recipe import yaml

Loc = tuple[str | int, ...]

# What the parser says, and the same for somebody who did not write the parser. The first that is found is taken.
_PLAINER = (
    ("mapping values are not allowed here", "a ':' is not allowed here", "quote text that contains ': '"),
    (r"character '\t'", "there is a tab here", "indent YAML with spaces"),
    ("that cannot start any token", "text cannot start with this character", "put the text in quotes"),
    ("expected ',' or ']'", "the list that starts here is not closed", "close it with ], or write the missing comma"),
    (
        "expected ',' or '}'",
        "the mapping that starts here is not closed",
        "close it with }, or write the missing comma",
    ),
    ("expected <block end>", "this line does not line up with the ones above", "indent it like the lines around it"),
    ("could not find expected ':'", "a ':' is missing after the key", "write `key: value`"),
    ("unexpected end of stream", "the quote that starts here is not closed", "close it"),
    ("found undefined alias", "the alias does not refer to an anchor", "quote text that starts with *"),
    ("found another document", "a second document starts here", "keep one document; remove the `---`"),
    ("constructor for the tag", "the tag is unknown", "quote text that starts with !"),
)
# What align says of YAML that it does not take: the way out.
_LIMITS = (
    ("an anchor contains itself", "remove its alias"),
    ("this value cannot be read", "quote it if it is text, and correct it if it is a date or has a tag"),
    ("a value cannot be read", "look for a \\U or \\u in double quotes that names no character"),
    ("this number is too large", "write one of at most 18 digits, or quote it if it is text"),
    ("this text contains", "remove it"),
    ("the file is longer", "give a recipe; data have files of their own"),
    ("a key must be text", "write `key: value`"),
    ("has no place in a recipe", "remove the tag, or quote text that starts with !"),
    ("there are more than", "write a recipe that a person can read"),
)


@dataclass
class Document:
    """The plain data of a YAML file, and the place of each key.

    `overrides` maps a dotted path to the command-line text that set it, so that its faults name the command line.
    """

    file: str
    data: dict[str, Any]
    marks: Any = None
    overrides: dict[str, str] = field(default_factory=dict)

    def place(self, loc: Sequence[str | int]) -> Place:
        """The place of the deepest part of `loc` that the file or the command line holds."""
        node, line, column = self.marks, 0, 0
        for depth, part in enumerate(loc, start=1):
            text = self._override(loc[:depth])
            if text is not None:
                secret = loc[0] == "notify"  # which may hold the address of a webhook
                return Place(f"--set {text.partition('=')[0]}=..." if secret else f"--set {text}")
            mark = _mark(node, part)
            if mark is None:
                break
            line, column = mark
            node = node[part]
        return Place(self.file, line + 1, column + 1)

    def _override(self, loc: Sequence[str | int]) -> str | None:
        """The command-line text that set what stands at `loc`, or that made a mapping there."""
        path = ".".join(str(part) for part in loc)
        if path in self.overrides or self.has(loc):
            return self.overrides.get(path)
        return next((text for key, text in self.overrides.items() if key.startswith(f"{path}.")), None)

    def has(self, loc: Sequence[str | int]) -> bool:
        """Whether the file itself holds something at `loc`."""
        node = self.marks
        for part in loc:
            if _mark(node, part) is None:
                return False
            node = node[part]
        return True

    def fault(self, loc: Sequence[str | int], what: str, remedy: str = "") -> AlignError:
        """An AlignError at the place of `loc`."""
        return AlignError(what, remedy, place=self.place(loc))

    def set(self, text: str) -> None:
        """Change a value by `stages.dpo.beta=0.2`, as given to `--set`.

        Raises:
            AlignError: it has no such form, or the key would stand below something that is no mapping.
        """
        place = Place(f"--set {text}")
        path, equals, value = text.partition("=")
        parts = path.strip().split(".")
        if not equals or not all(parts):
            raise AlignError("this is not KEY=VALUE", "for example, write --set stages.dpo.beta=0.2", place=place)
        node = self.data
        for depth, part in enumerate(parts[:-1], start=1):
            if node.get(part) is None:
                node[part] = {}
            if not isinstance(node[part], dict):
                what = f"'{dotted(parts[:depth])}' has no keys, so '{path.strip()}' cannot be set"
                raise AlignError(what, f"set '{dotted(parts[:depth])}' as a whole", place=place)
            node = node[part]
        node[parts[-1]] = _scalar(value, place)
        self.overrides[".".join(parts)] = text


def _mark(node: Any, part: str | int) -> tuple[int, int] | None:
    """Line and column of an entry, from 0; None also for one of a merge key (`<<: *anchor`), which has no line here."""
    in_map = isinstance(node, CommentedMap) and part in node
    in_list = isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node)
    mark = (node.lc.data or {}).get(part) if in_map or in_list else None
    return (mark[0], mark[1]) if mark else None


def read(path: Path, shown: str | None = None) -> Document:
    """Read a YAML file whose top level is a mapping.

    Args:
        shown: the file's name in messages; the path itself by default.

    Raises:
        AlignError: the file is missing, is no YAML, repeats a key, or is not a mapping; with line and column.
    """
    shown = shown or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AlignError(f"there is no file '{shown}'", "check the path") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        what = f"the byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise AlignError(what, "save the file as UTF-8", place=Place(shown, line)) from None
    except OSError as error:
        what = f"the file cannot be read: {error.strerror}"
        raise AlignError(what, "give a YAML file that you have permission to read", place=Place(shown)) from None
    return parse(text, shown)


def parse(text: str, shown: str) -> Document:
    """The same for text already read; `shown` is the file's name in messages."""
    try:
        marks = yaml.load(text)
        if not isinstance(marks, CommentedMap):
            found = "the file is empty" if marks is None else "the top level is not a mapping of keys"
            raise AlignError(found, "write `key: value` lines, as in recipes/", place=Place(shown, 1, 1))
        return Document(shown, plain(marks), marks)
    except YAMLError as error:
        raise _yaml_fault(error, shown) from None


def _yaml_fault(error: YAMLError, shown: str) -> AlignError:
    if not isinstance(error, MarkedYAMLError):
        return AlignError("the file contains a control character", "remove it", place=Place(shown))
    mark = error.problem_mark or error.context_mark
    place = Place(shown, mark.line + 1, mark.column + 1) if mark else Place(shown)
    problem = str(error.problem or error.context or "this is not valid YAML").strip().splitlines()[0]
    if isinstance(error, DuplicateKeyError):
        key = re.search(r'duplicate key "(.*?)" with', problem)
        first = error.context_mark.line + 1 if error.context_mark else None
        where = f" in the mapping that starts on line {first}" if first else ""
        return AlignError(f"the key '{key.group(1) if key else '?'}' appears twice{where}", "keep one", place=place)
    for said, remedy in _LIMITS:
        if said in problem:
            return AlignError(problem, remedy, place=place)
    for said, what, remedy in _PLAINER:
        if said in problem:
            if "opens here" in what and error.context_mark:
                place = Place(shown, error.context_mark.line + 1, error.context_mark.column + 1)
            return AlignError(f"broken YAML: {what}", remedy, place=place)
    return AlignError(f"broken YAML: {problem}", "correct the file there", place=place)


def plain(node: Any) -> Any:
    """ruamel's containers and scalars as plain Python values."""
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return str(node)


def _scalar(text: str, place: Place) -> Any:
    """A value given on the command line, read as the recipe's own YAML is read."""
    try:
        return plain(yaml.load(text))
    except YAMLError as error:
        fault = _yaml_fault(error, "")
        raise AlignError(fault.what, fault.remedy, place=place) from None


def dotted(loc: Sequence[str | int]) -> str:
    """`stages.sft.data[1].source`"""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")
