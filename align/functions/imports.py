"""The packages that a user's script cannot do without, read from its source; neither it nor they are imported."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from align.errors import AlignError, Place

DISTRIBUTIONS = {  # what pip calls a package that is imported by another name
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
    "bs4": "beautifulsoup4",
    "PIL": "pillow",
    "cv2": "opencv-python",
}
MET = ("ImportError", "ModuleNotFoundError", "Exception", "BaseException")  # who catches these can do without


@dataclass(frozen=True)
class Import:
    """A package that a file imports; `module` is what stands before the first dot."""

    module: str
    file: Path
    line: int

    @property
    def install(self) -> str:
        """How it is installed."""
        return f"pip install {DISTRIBUTIONS.get(self.module, self.module.replace('_', '-'))}"


def missing(script: Path) -> Import | None:
    """The first package that is not installed and that the script, or a file beside it that it imports, needs.

    What is imported in a function counts as well. What is imported under a condition does not, nor where a failure is
    caught.

    Raises:
        AlignError: a file is no Python.
    """
    return next((one for one in _all(script, set()) if importlib.util.find_spec(one.module) is None), None)


def _all(script: Path, seen: set[Path]) -> Iterator[Import]:
    if script in seen:
        return
    seen.add(script)
    try:
        tree = ast.parse(script.read_bytes())  # which may begin with a mark of their order, or name their encoding
    except SyntaxError as error:
        what = f"'{script.name}' is not valid Python: {error.msg}"
        raise AlignError(what, "correct it there", place=Place(str(script), error.lineno, error.offset)) from None
    for name, level, line in _needed(tree):
        module = name.partition(".")[0]
        beside, folder = script.with_name(f"{module}.py"), script.with_name(module)
        if beside.is_file():
            yield from _all(beside, seen)
        elif module and not level and not folder.is_dir():
            yield Import(module, script, line)


def _needed(node: ast.AST) -> Iterator[tuple[str, int, int]]:
    """Module, level and line of the imports below a node."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, 0, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        names = [node.module] if node.module else [alias.name for alias in node.names]  # from . import these
        yield from ((name, node.level, node.lineno) for name in names)
    elif isinstance(node, ast.If | ast.Match | ast.IfExp):
        return
    else:
        caught = isinstance(node, ast.Try) and any(map(_catches, node.handlers))
        if isinstance(node, ast.With) and any(map(_suppresses, node.items)):
            return
        for child in ast.iter_child_nodes(node):
            if not (caught and isinstance(node, ast.Try) and (child in node.body or child in node.handlers)):
                yield from _needed(child)


def _catches(handler: ast.ExceptHandler) -> bool:
    """Whether an import that fails ends up here."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or _met(kind) for kind in kinds)


def _suppresses(item: ast.withitem) -> bool:
    """Whether it is `suppress(ImportError)`, or `contextlib.suppress(...)`."""
    call = item.context_expr
    if not isinstance(call, ast.Call):
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    return name == "suppress" and any(map(_met, call.args))


def _met(kind: ast.expr) -> bool:
    return isinstance(kind, ast.Name) and kind.id in MET
