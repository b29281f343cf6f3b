"""A mapping checked against a typed model, with each fault in our own words and at its place in the file.

pydantic says what it compared ("Input should be a valid integer") and puts the names of union branches into paths. A
recipe's author wants the key as written, what it must be, and what it is for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from align.errors import AlignError, FaultList, did_you_mean, nearest, one_of, shown
from align.recipe import other_tools
from align.recipe.document import Loc, dotted

if TYPE_CHECKING:
    from align.recipe.document import Document

M = TypeVar("M", bound=BaseModel)


# What a value must be, by the type of pydantic's error.
_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "list_type": "a list",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_OF_OTHER_TOOLS = ("stages", "model", "parameterization")  # where their names are mostly written, besides the top
# A validator of ours says "what is wrong: write ..." or "what is wrong; did you mean ...", and the second half is the
# remedy.
_REMEDY = re.compile(r"(?:: |; )(?=write |did you mean|known are|choose |give )")


@dataclass(frozen=True)
class _Error:
    """One error of pydantic: the keys as they stand in the data, and the branches of unions that still lie ahead."""

    loc: Loc
    branches: tuple[tuple[int, str], ...]  # after how many keys, and which
    detail: ErrorDetails

    @property
    def is_shape(self) -> bool:
        """Whether the value is of another kind altogether."""
        return self.detail["type"] in _KINDS

    @property
    def is_other_word(self) -> bool:
        """Whether a word was wanted, such as `auto`, and the value is no text."""
        return self.detail["type"] == "literal_error" and not isinstance(self.detail["input"], str)


def validate(document: Document, model: type[M], data: Any, at: Loc = (), closed: Collection[str] = frozenset()) -> M:
    """Check `data`, which stands at `at` in the document, against a typed model.

    Values are taken as YAML says them: `"7"` is no number and `true` is no 1.

    Args:
        closed: keys of the model that are refused here elsewhere, so that none of them is suggested.

    Raises:
        AlignError, Faults: every fault with its place; an unknown key names the nearest known one.
    """
    try:
        return model.model_validate(data, strict=True)
    except ValidationError as error:
        faults = FaultList()
        groups = list(_settled([_keys_of(detail, data) for detail in error.errors()]))
        misspelt = {_meant(model, group[0]) for group in groups if group[0].detail["type"] == "extra_forbidden"}
        for group in groups:
            if not (group[0].detail["type"] == "missing" and group[0].loc in misspelt):
                faults.found.append(_fault(document, model, at, group, closed))
        faults.raise_any()
        raise AssertionError("a ValidationError without errors") from error


def _keys_of(detail: ErrorDetails, data: Any) -> _Error:
    """Tell keys from the names of union branches: a key stands in the data, or is the one that is missing."""
    loc: list[str | int] = []
    branches = []
    node = data
    for number, part in enumerate(detail["loc"], start=1):
        in_map = isinstance(node, dict) and part in node
        in_list = isinstance(node, list) and isinstance(part, int) and part < len(node)
        is_missing = number == len(detail["loc"]) and detail["type"] == "missing" and isinstance(node, dict)
        if in_map or in_list:
            node = node[part]
        elif not is_missing:
            branches.append((len(loc), str(part)))
            continue
        loc.append(part)
    return _Error(tuple(loc), tuple(branches), detail)


def _settled(errors: list[_Error]) -> Iterator[list[_Error]]:
    """One group of errors for each fault, in order: of a union, those of the branch that the author meant.

    That is the branch whose kind (text, mapping, list) fits the value. Where none fits, the group holds the errors of
    all, to say everything that the value may be.
    """
    done: set[tuple[Loc, int]] = set()
    for error in errors:
        if not error.branches:
            yield [error]
            continue
        depth = error.branches[0][0]
        point = (error.loc[:depth], depth)
        if point in done:
            continue
        done.add(point)
        of_union = [e for e in errors if e.branches and e.branches[0][0] == depth and e.loc[:depth] == point[0]]
        wrong_kind = {e.branches[0][1] for e in of_union if (e.is_shape or e.is_other_word) and len(e.loc) == depth}
        meant = [e for e in of_union if e.branches[0][1] not in wrong_kind]
        if meant:
            yield from _settled([_Error(e.loc, e.branches[1:], e.detail) for e in meant])
        else:
            yield [e for e in of_union if len(e.loc) == depth]


def _fault(
    document: Document, model: type[BaseModel], at: Loc, group: list[_Error], closed: Collection[str]
) -> AlignError:
    loc, detail = group[0].loc, group[0].detail
    what, remedy = _words(model, at, group, closed)
    if not remedy:
        remedy = _meaning(model, loc) if detail["type"] != "value_error" else ""
    return document.fault((*at, *loc), what, remedy)


def _words(model: type[BaseModel], at: Loc, group: list[_Error], closed: Collection[str]) -> tuple[str, str]:
    """What is wrong, and the way out where the error itself knows one."""
    loc, detail = group[0].loc, group[0].detail
    path, kind, value = dotted((*at, *loc)), detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if len(group) > 1 or kind in _KINDS:
        kinds = list(dict.fromkeys(_KINDS[error.detail["type"]] for error in group if error.is_shape))
        if any(_takes_text(found) for found in _models(_annotation(model, loc))):
            kinds.insert(0, "text")
        kinds += [error.detail["ctx"]["expected"] for error in group if error.is_other_word]
        what = f"'{path}' must be {one_of(kinds)}, not {shown(value)}"
        return what, _as_mapping(model, loc, value) if kinds == ["a mapping"] else ""
    if kind == "extra_forbidden":
        return f"unknown key '{path}'", _known_keys(model, at, loc, closed if len(loc) == 1 else ())
    if kind == "missing":
        return f"the key '{path}' is missing", ""
    if kind == "literal_error":
        options = re.findall(r"'[^']*'|\b\d+\b", context["expected"])
        if int in _alternatives(_annotation(model, loc)):
            return f"'{path}' must be {one_of(['a whole number', *options])}, not {shown(value)}", ""
        return f"'{path}' cannot be {shown(value)}", did_you_mean(str(value), [o.strip("'") for o in options])
    if kind in _BOUNDS:
        word, bound = _BOUNDS[kind]
        return f"'{path}' must be {word} {context[bound]:g}, not {value!r}", ""
    if kind in ("too_short", "string_too_short"):
        return f"'{path}' is empty", ""
    if kind == "finite_number":
        return f"'{path}' must be a finite number, not {value!r}", ""
    message = str(context.get("error") or detail["msg"])
    said, *remedy = _REMEDY.split(message, maxsplit=1)
    return f"'{path}': {said}", "".join(remedy)


def _takes_text(model: type[BaseModel]) -> bool:
    """Whether a model has a short form, as a data source that is only named."""
    try:
        model.model_validate("text", strict=True)
    except ValidationError:
        return False
    return True


def _as_mapping(model: type[BaseModel], loc: Loc, value: Any) -> str:
    """How a mapping is written where somebody gave the one value that it mostly holds."""
    inner = next(iter(_models(_annotation(model, loc))), None)
    if inner is None or isinstance(value, bool | dict | list | None):
        return ""
    required = [name for name, info in inner.model_fields.items() if info.is_required()]
    if len(required) == 1 and isinstance(value, str):
        return f"write `{loc[-1]}: {{{required[0]}: {value}}}`"
    return f"known there: {', '.join(inner.model_fields)}"


def _known_keys(model: type[BaseModel], at: Loc, loc: Loc, closed: Collection[str]) -> str:
    """The nearest known key; or the place elsewhere where the key belongs; or all that are known."""
    here = list(_models(_annotation(model, loc[:-1])))
    known = {name: info for found in here for name, info in found.model_fields.items() if name not in closed}
    word = str(loc[-1])
    for name, info in known.items():
        if any(word in found.model_fields for found in _models(info.annotation)):
            return f"write it under `{name}:`"
    of_stage = len(at) == 2 and at[0] == "stages" and len(loc) == 1
    elsewhere = other_tools.remedy(word, (*at, *loc[:-1]), keys=known if of_stage else None)
    if not elsewhere and (other_tools.ours(word) or "").startswith("kl.") and "beta" in known:
        elsewhere = "write `beta`"  # `kl` is for `ppo` alone
    if elsewhere and (*at, *loc)[0] in _OF_OTHER_TOOLS:
        return elsewhere
    if word in known:  # of another kind of what may stand here
        kind = next(found for found in here if word not in found.model_fields)
        return f"known beside the other keys: {', '.join(kind.model_fields)}"
    close = _same(word, known) or nearest(word, known)
    return f"did you mean '{close}'?" if close else f"known here: {', '.join(known)}"


def _same(word: str, known: Collection[str]) -> str | None:
    """The known key that another tool calls by this word."""
    own = (other_tools.ours(word) or "").rpartition(".")[2]
    return own if own in known else None


def _meant(model: type[BaseModel], error: _Error) -> Loc:
    """The known key that an unknown one most likely means; it is then not missing as well."""
    known = [name for found in _models(_annotation(model, error.loc[:-1])) for name in found.model_fields]
    word = str(error.loc[-1])
    return (*error.loc[:-1], _same(word, known) or nearest(word, known) or "")


def _meaning(model: type[BaseModel], loc: Loc) -> str:
    """What the key is for, from the model itself."""
    for end in range(len(loc), 0, -1):
        info = _field(model, loc[:end])
        if info is not None:
            text = (info.description or "").rstrip(".")
            return f"{loc[end - 1]}: {text}" if text else ""
    return ""


def _field(model: type[BaseModel], loc: Loc) -> FieldInfo | None:
    parents = _models(_annotation(model, loc[:-1]))
    return next((found.model_fields[str(loc[-1])] for found in parents if str(loc[-1]) in found.model_fields), None)


def _annotation(model: type[BaseModel], loc: Loc) -> Any:
    """The annotation of what stands at `loc`, followed through models, unions, lists and mappings."""
    here: Any = model
    for part in loc:
        inner = [_step(candidate, part) for candidate in _alternatives(here)]
        here = Union[tuple(step for step in inner if step is not None) or (None,)]  # noqa: UP007 - made at run time
    return here


def _step(annotation: Any, part: str | int) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        info = annotation.model_fields.get(str(part))
        return info.annotation if info else None
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is list and isinstance(part, int):
        return args[0]
    return args[1] if origin is dict else None


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The branches of a union, without the marks of Annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for branch in get_args(annotation):
            yield from _alternatives(branch)
    else:
        yield annotation


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models among the branches of an annotation."""
    for branch in _alternatives(annotation):
        if isinstance(branch, type) and issubclass(branch, BaseModel):
            yield branch
