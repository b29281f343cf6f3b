"""A stage file, found by name or by path and loaded."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from align import errors, shipped, user_paths
from align.errors import AlignError, Place
from align.stage import Stage


@dataclass(frozen=True)
class Program:
    """A stage as found: its declaration, and the identity that a fingerprint takes in."""

    name: str
    path: Path
    stage: Stage
    sha256: str  # of the file


def load(name: str, root: Path) -> Program:
    """Load a shipped stage by name, or a user's file by path (from the current folder, or from `root`, the recipe's).

    Raises:
        AlignError: there is no such stage, or the file declares none or cannot be imported.
    """
    if name.endswith(".py") or "/" in name:
        path = user_paths.find(name, root, Path.is_file)
        if path is None:
            raise AlignError(f"there is no stage file '{name}'", _near_file(name, root))
        user_paths.text(path, name)  # refused where it cannot be read, or is no text
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        module = _execute(f"align_user_stage_{digest[:12]}", path, name)
        return Program(name, path.resolve(), _declared(module, name), digest)
    found = shipped.find("stages", name)
    if found is None:
        own = user_paths.find(f"{name}.py", root, Path.is_file)
        remedy = f"did you mean './{name}.py'?" if own else errors.did_you_mean(name, shipped.names("stages"))
        raise AlignError(f"there is no stage '{name}'", remedy)
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    return Program(name, found, _declared(_execute(f"align.stages.{name}", found, str(found)), name), digest)


def _near_file(name: str, root: Path) -> str:
    """A file of nearly that name; or where paths start."""
    for folder in (path.parent for path in user_paths.candidates(name, root)):
        files = [path.name for path in folder.glob("*.py")] if folder.is_dir() else []
        close = errors.nearest(Path(name).name, files)
        if close:
            return f"did you mean '{name.removesuffix(Path(name).name)}{close}'?"
    return user_paths.START


def _execute(module_name: str, path: Path, shown: str) -> ModuleType:
    if module_name in sys.modules:
        return sys.modules[module_name]
    path = path.resolve()
    package = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(module_name, path, submodule_search_locations=package)
    if spec is None or spec.loader is None:
        raise AlignError(f"the stage file '{shown}' is not a Python file", "give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # pickled functions and dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise _import_fault(error, path, shown) from error
    return module


def _import_fault(error: BaseException, path: Path, shown: str) -> AlignError:
    """What went wrong in a stage file, at the line of that file, wherever the error was raised below it."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        place = Place(shown, error.lineno, error.offset)
        return AlignError(f"the stage file is not valid Python: {error.msg}", "correct the file there", place=place)
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    said = str(error).removesuffix(f" ({error.path})") if isinstance(error, ImportError) else str(error)
    what = f"the stage file cannot be imported: {type(error).__name__}: {said}"
    return AlignError(what, "correct the file there", place=Place(shown, line))


def _declared(module: ModuleType, name: str) -> Stage:
    stage = getattr(module, "STAGE", None)
    if not isinstance(stage, Stage):
        what = "the stage file declares no STAGE"
        raise AlignError(what, "end it with `STAGE = align.stage.Stage(...)`", place=Place(name))
    return stage
