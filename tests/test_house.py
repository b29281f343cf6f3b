"""The structure of the package: docs/ARCHITECTURE.md names every package, and imports run downwards."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "align"
FLAT = 8  # files allowed next to the packages


def packages() -> list[str]:
    """The packages of the table, from top to bottom."""
    text = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8").split("## Packages")[1].split("\n## ")[0]
    return [
        name.removesuffix("/").removesuffix(".py") for name in re.findall(r"^\| `([\w/.]+)` \|", text, re.MULTILINE)
    ]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The package's modules that a file imports, at its top, inside its functions or for its types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "align"


def test_the_map_names_every_package() -> None:
    here = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()} | {p.stem for p in PACKAGE.glob("*.py")}
    assert sorted(packages()) == sorted(here - {"__init__", "__main__"})
    assert len(list(PACKAGE.glob("*.py"))) <= FLAT


def test_imports_run_downwards() -> None:
    known, levels = modules(), {package: level for level, package in enumerate(packages())}
    upward = [
        f"{module} -> {target}"
        for module, path in known.items()
        for target in imports(path, known)
        if package_of(module) in levels
        and package_of(target) in levels
        and levels[package_of(target)] < levels[package_of(module)]
    ]
    assert upward == []


def test_no_two_files_import_each_other() -> None:
    """A package's `__init__.py` re-exports names; importing one imports the file behind it."""
    known = modules()
    graph = {module: set(imports(path, known)) for module, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_a_stage_imports_no_other_stage() -> None:
    for path in (ROOT / "stages").glob("*.py"):
        code = ast.parse(path.read_text(encoding="utf-8"))
        names = [node.module or "" for node in ast.walk(code) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name.split(".")[0] == "stages"], path.name


def test_the_traces_of_a_run_and_of_a_row_name_existing_code() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8").split("## Trace of", 1)[1]
    text = text.split("## Where do I add")[0]
    steps = re.findall(r"^ {4,}((?:\w+/)?\w+)\.(\w+)(?:\.(\w+))?[ (]", text, re.MULTILINE)
    assert len(steps) >= 18
    for file, name, member in steps:
        path = next(p for p in (PACKAGE / f"{file}.py", ROOT / f"{file}.py") if p.is_file())
        code = ast.parse(path.read_text(encoding="utf-8"))
        named = {node.name: node for node in ast.walk(code) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        assert name in named, f"{file}.{name}"
        assert not member or member in {getattr(node, "name", "") for node in named[name].body}, f"{name}.{member}"
