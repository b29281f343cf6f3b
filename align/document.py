"""A YAML file that remembers where everything stands, and its check against a typed model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from align.errors import AlignError, FaultList, Place
from align.shelf import nearest

M = TypeVar("M", bound=BaseModel)
Loc = tuple[str | int, ...]


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
        """The place of the deepest part of `loc` that stands in the file."""
        for end in range(len(loc), 0, -1):
            text = self.overrides.get(".".join(str(part) for part in loc[:end]))
            if text is not None:
                return Place(f"--set {text}")
        node, line, column = self.marks, 0, 0
        for part in loc:
            mark = _mark(node, part)
            if mark is None:
                break
            line, column = mark
            node = node[part]
        return Place(self.file, line + 1, column + 1)

    def fault(self, loc: Sequence[str | int], what: str, remedy: str = "") -> AlignError:
        """An AlignError at the place of `loc`."""
        return AlignError(what, remedy, place=self.place(loc))


def _mark(node: Any, part: str | int) -> tuple[int, int] | None:
    if isinstance(node, CommentedMap) and part in node:
        line, column = node.lc.key(part)
        return line, column
    if isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
        line, column = node.lc.item(part)
        return line, column
    return None


def read(path: Path, shown: str | None = None) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        AlignError: the file is missing, is no YAML, repeats a key, or is not a mapping; with line and column.
    """
    shown = shown or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AlignError(f"there is no file '{shown}'", "give the path of a recipe, or see `align list`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AlignError(f"'{shown}' cannot be read as text ({error})", "give a YAML file in UTF-8") from None
    return parse(text, shown)


def parse(text: str, shown: str) -> Document:
    """The same for text already read; `shown` is the file's name in messages."""
    try:
        marks = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        raise _yaml_fault(error, shown, "keep one of the two") from None
    except MarkedYAMLError as error:
        raise _yaml_fault(error, shown, "mend the YAML at this place") from None
    except YAMLError as error:
        raise AlignError(f"this is no YAML ({error})", "mend the file", place=Place(shown)) from None
    if not isinstance(marks, CommentedMap):
        raise AlignError("the top level is not a mapping of keys", "write `key: value` lines", place=Place(shown, 1, 1))
    return Document(shown, plain(marks), marks)


def _yaml_fault(error: MarkedYAMLError, shown: str, remedy: str) -> AlignError:
    mark = error.problem_mark or error.context_mark
    place = Place(shown, mark.line + 1, mark.column + 1) if mark else Place(shown)
    what = str(error.problem or error.context or "this is no YAML").strip().splitlines()[0]
    return AlignError(what, remedy, place=place)


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


def scalar(text: str) -> Any:
    """A value given on the command line, read as YAML reads it."""
    return plain(YAML(typ="safe").load(text))


def validate(document: Document, model: type[M], data: Any, at: Loc = ()) -> M:
    """Check `data`, which stands at `at` in the document, against a typed model.

    Raises:
        AlignError, Faults: every fault with its place; an unknown key names the nearest known one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = FaultList()
        for detail in error.errors():
            faults.found.append(_fault(document, model, at, detail))
        faults.raise_any()
        raise AssertionError("a ValidationError without errors") from error


def _fault(document: Document, model: type[BaseModel], at: Loc, detail: ErrorDetails) -> AlignError:
    loc = tuple(part for part in detail["loc"] if not _is_branch(part))
    dotted = ".".join(str(part) for part in (*at, *loc))
    place = document.place((*at, *loc))
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = sorted(_fields(model, loc[:-1]))
        close = nearest(str(loc[-1]), known)
        remedy = f"did you mean '{close}'?" if close else f"known here: {', '.join(known)}"
        return AlignError(f"unknown key '{dotted}'", remedy, place=place)
    if kind == "missing":
        return AlignError(f"the key '{dotted}' is missing", "add it", place=place)
    context = detail.get("ctx", {}).get("error")
    if isinstance(context, AlignError):
        return AlignError(context.what, context.remedy, place=place)
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return AlignError(f"'{dotted}': {message}", f"it is {detail['input']!r} now", place=place)


def _is_branch(part: str | int) -> bool:
    """pydantic puts the name of a union's branch into `loc`; a user wrote no such key."""
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in {"str", "float", "int", "bool"})


def _fields(model: type[BaseModel], loc: Loc) -> list[str]:
    """The keys known at `loc` inside a model, followed through nested models, lists and optionals."""
    here: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        info = here.model_fields.get(part) if isinstance(here, type) and issubclass(here, BaseModel) else None
        here = _nested(info.annotation) if info is not None else None
        if here is None:
            return []
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _nested(inner)
        if found is not None:
            return found
    return None
