"""Settings as a library declares them in its dataclasses, read from the source (`ast`) without importing it.

It is the truth about the installed version, at a hundredth of the time of an import, and no list is kept by hand.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import AlignError, Exit

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping",
    "list": "a list",
    "None": "null",
}


@dataclass(frozen=True)
class Argument:
    """One setting.

    Attributes:
        annotation: as written in the source.
        kinds: the plain types that it allows (int, float, bool, str, dict, list, None); empty where others are among
            them, of which nothing is known here.
        choices: the values that it may take; empty where any of its kinds may stand.
        default: None also where the source computes it.
        help: the words of its help.
    """

    name: str
    annotation: str
    kinds: frozenset[str]
    choices: tuple[str, ...]
    default: Any
    help: str

    def fits(self, value: Any) -> bool:
        """Whether a YAML value is of one of its kinds; a whole number is a number too, true is none."""
        if not self.kinds:
            return True
        if isinstance(value, int) and not isinstance(value, bool):
            return bool(self.kinds & {"int", "float"})
        return (type(value).__name__ if value is not None else "None") in self.kinds

    @property
    def words(self) -> list[str]:
        """Its kinds as a person says them."""
        return [word for kind, word in _WORDS.items() if kind in self.kinds]


def folder(package: str) -> Path:
    """Where an installed package lies.

    Raises:
        AlignError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin or not spec.submodule_search_locations:
        what = f"the package '{package}' is not installed"
        raise AlignError(what, "pip install align-suite", exit=Exit.MACHINE)
    return Path(spec.submodule_search_locations[0])


def classes(paths: Iterable[Path]) -> dict[str, ast.ClassDef]:
    """The classes of source files by name; of two that share one, the later. A file that is not there has none."""
    found: dict[str, ast.ClassDef] = {}
    for path in paths:
        body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
        found.update({node.name: node for node in body if isinstance(node, ast.ClassDef)})
    return found


def fields(name: str, classes: Mapping[str, ast.ClassDef]) -> dict[str, Argument]:
    """The fields of a dataclass, with those it inherits from others among `classes`."""
    found: dict[str, Argument] = {}
    node = classes[name]
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found.update(fields(base.id, classes))
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id[0] != "_":
            found[item.target.id] = _argument(item.target.id, item, classes)
    return found


def _argument(name: str, item: ast.AnnAssign, classes: Mapping[str, ast.ClassDef]) -> Argument:
    plain = {"int", "float", "bool", "str", "dict", "list", "None"}
    parts = list(_parts(item.annotation))
    kinds, choices = set[str](), list[str]()
    for part in parts:
        if isinstance(part, ast.Name) and part.id in classes:
            choices += _members(classes[part.id])
            kinds.add("str")
        elif isinstance(part, ast.Constant) and part.value is None:
            kinds.add("None")
        else:
            base = part.value if isinstance(part, ast.Subscript) else part
            kinds.add(base.id if isinstance(base, ast.Name) else "?")
    metadata = _metadata(item.value)
    listed = metadata.get("choices")
    return Argument(
        name=name,
        annotation=ast.unparse(item.annotation),
        kinds=frozenset(kinds) if kinds <= plain else frozenset(),
        choices=tuple(listed if isinstance(listed, list) else choices),
        default=_default(item.value),
        help=str(metadata.get("help") or "").replace("%%", "%"),
    )


def _parts(annotation: ast.expr) -> Iterator[ast.expr]:
    """The branches of `A | B`, also inside `Optional[...]` and `Union[...]`."""
    if isinstance(annotation, ast.BinOp):
        yield from _parts(annotation.left)
        yield from _parts(annotation.right)
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Optional":
        yield from _parts(annotation.slice)
        yield ast.Constant(None)
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Union":
        for part in annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]:
            yield from _parts(part)
    else:
        yield annotation


def _members(node: ast.ClassDef) -> list[str]:
    """The values of an Enum's members."""
    values = [item.value for item in node.body if isinstance(item, ast.Assign)]
    return [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]


def _metadata(value: ast.expr | None) -> dict[str, Any]:
    """The literal parts of `field(metadata={...})`."""
    found: dict[str, Any] = {}
    for keyword in value.keywords if isinstance(value, ast.Call) else ():
        if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            for key, part in zip(keyword.value.keys, keyword.value.values, strict=True):
                if isinstance(key, ast.Constant):
                    found[str(key.value)] = _literal(part)
    return found


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        return next((_literal(keyword.value) for keyword in value.keywords if keyword.arg == "default"), None)
    return _literal(value) if value is not None else None


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
