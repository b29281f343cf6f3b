"""A function in a user's file, read from its source without importing it. No torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from align import errors, user_paths
from align.errors import AlignError, Place
from align.run_folder import files

NAMED = re.compile(r"(?P<file>.+\.py)(?::(?P<name>\w+))?")


@dataclass(frozen=True)
class Declared:
    """A function as its file declares it.

    Attributes:
        path: the file, absolute.
        sha256: of the file.
        needs: the arguments that it cannot do without, in their order.
    """

    name: str
    path: Path
    sha256: str
    needs: tuple[str, ...]


def find(file: str, name: str | None, root: Path, *, purpose: str, example: str) -> Declared:
    """The function `name` of a file.

    Args:
        root: the recipe's folder.
        purpose: what it is, for messages, such as `reward function`.
        example: its first line, as somebody would write it.

    Raises:
        AlignError: there is no such file or function, or the file is not valid Python.
    """
    path = user_paths.find(file, root, Path.is_file)
    if path is None:
        raise AlignError(f"there is no file '{file}'", user_paths.START)
    try:
        tree = ast.parse(user_paths.text(path, file))
    except SyntaxError as error:
        what = f"the file of the {purpose} is not valid Python: {error.msg}"
        raise AlignError(what, "correct it there", place=Place(file, error.lineno, error.offset)) from None
    known = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name is None:
        first = next(iter(known), example.removeprefix("def ").partition("(")[0])
        raise AlignError(f"'{file}' does not name a function", f"write '{file}:{first}'")
    if name not in known:
        what, remedy = f"'{file}' has no function '{name}'", errors.did_you_mean(name, known)
        own = f"def {name}({example.partition('(')[2]}"
        raise AlignError(what, remedy if known else f"write `{own}` there")
    return Declared(name, path.resolve(), files.file_sha256(path), tuple(_needs(known[name])))


def _needs(function: ast.FunctionDef) -> list[str]:
    its = function.args
    positional = its.args[: len(its.args) - len(its.defaults)]
    named = [one for one, default in zip(its.kwonlyargs, its.kw_defaults, strict=True) if default is None]
    return [one.arg for one in (*positional, *named)]


def missing(declared: Declared, given: Collection[str]) -> str | None:
    """The first argument that a function cannot do without and that it would not be given."""
    return next((name for name in declared.needs if name not in given), None)
