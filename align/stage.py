"""What a stage is: the declaration at the end of a stage file, and the records that go in and come out.

A stage file declares one `STAGE = Stage(...)`. It is loaded by name (`stages/sft.py` is `sft`) or by path
(`./my_stage.py`), in the torch-free parent too: import torch and trl inside its functions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from align import errors, shipped
from align.data.formats import Example, Kind
from align.data.sources import DataSource
from align.errors import AlignError, Place
from align.run_folder.records import Gives, Ticket

if TYPE_CHECKING:
    from align.job import Job


class Replay(BaseModel):
    """Rows of earlier knowledge mixed into a stage's own, so that it is not forgotten."""

    model_config = ConfigDict(extra="forbid")
    data: DataSource | list[DataSource] = Field(
        description="the rows to mix in: a file, a folder, a Hub id, lab/general"
    )
    ratio: float = Field(ge=0, lt=1, description="their share of the training rows: 0.05 is one row in twenty")


class StageKeys(BaseModel):
    """The recipe keys that every stage has. A stage adds its own by a subclass."""

    model_config = ConfigDict(extra="forbid")
    stage: str | None = Field(
        None,
        description="the program: a name of `align list`, or ./my_stage.py; by default the entry's own name",
    )
    policy: str | None = Field(None, description="the stage whose policy it starts from; `base` is the base model")
    data: DataSource | list[DataSource] = Field(
        description="what it trains on: a file, a folder, a Hub id, lab/helpdesk"
    )
    eval_data: DataSource | list[DataSource] | int | float | None = Field(
        None, description="held-out rows for a validation loss: a source; or of `data` a share (0.05) or a number (200)"
    )
    parameterization: dict[str, Any] | None = Field(
        None, description="which weights this stage trains, as in `{method: qlora}`; replaces the recipe's whole"
    )
    replay: Replay | None = Field(None, description="replaces the recipe's; `null` means none in this stage")
    too_long: Literal["refuse", "drop"] = Field(
        "refuse",
        description="rows whose answer `max_length` would cut away entirely: refuse the recipe, or drop them and say "
        "how many",
    )
    training: dict[str, Any] = Field(
        default_factory=dict, description="the trainer's own arguments, as in `{learning_rate: 1e-4}`"
    )

    def contradictions(self, *, method: str, trains_base: bool, quantized: bool) -> list[tuple[str, str, str]]:
        """What does not go with the stage's parameterization: the key, what is wrong, and the way out."""
        return []

    def refusals(self, rows: Sequence[Example]) -> list[tuple[str, str, str]]:
        """What of the checked training rows does not go with these keys: the key, what is wrong, and the way out."""
        return []

    def notes(self, rows: Sequence[Example]) -> list[str]:
        """What is questionable about the stage's checked training rows, with these keys."""
        return []


@dataclass(frozen=True)
class Stage:
    """What a stage file declares.

    Attributes:
        description: one line for `align list`.
        rows: the kinds of rows it trains on.
        train: trains `job.model` in place and returns its final metrics.
        gives: what later stages may take from it.
        keys: its recipe keys, a subclass of StageKeys.
        arguments: the TRL config whose names `training:` takes; None: any name, the stage checks them itself.
        defaults: training arguments where it departs from TRL's defaults, by family: all, full, adapter.
        replays: whether replay rows can be mixed into its data.
        evaluates: whether it can take `eval_data`.
        owned: training arguments that a recipe writes elsewhere, or that this stage sets, each with what to write.
        beneath: puts adapters onto the model that must lie under the one that the stage trains.
    """

    description: str
    rows: frozenset[Kind]
    train: Callable[[Job], dict[str, Any]]
    gives: Gives = "policy"
    keys: type[StageKeys] = StageKeys
    arguments: str | None = None
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    replays: bool = False
    evaluates: bool = True
    owned: dict[str, str] = field(default_factory=dict)
    beneath: Callable[[Ticket, Any, Path], Any] | None = None


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
        path = next((p for p in (Path(name), root / name) if p.is_file()), None)
        if path is None:
            raise AlignError(f"there is no stage file '{name}'", _near_file(name, root))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        module = _execute(f"align_user_stage_{digest[:12]}", path, name)
        return Program(name, path.resolve(), _declared(module, name), digest)
    found = shipped.find("stages", name)
    if found is None:
        own = next((p for p in (Path(f"{name}.py"), root / f"{name}.py") if p.is_file()), None)
        remedy = f"did you mean './{name}.py'?" if own else errors.did_you_mean(name, shipped.names("stages"))
        raise AlignError(f"there is no stage '{name}'", remedy)
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    return Program(name, found, _declared(_execute(f"align.stages.{name}", found, str(found)), name), digest)


def _near_file(name: str, root: Path) -> str:
    """A file of nearly that name; or where paths start."""
    for folder in (Path(name).parent, (root / name).parent):
        files = [path.name for path in folder.glob("*.py")] if folder.is_dir() else []
        close = errors.nearest(Path(name).name, files)
        if close:
            return f"did you mean '{name.removesuffix(Path(name).name)}{close}'?"
    return "paths start from the current folder, then from the recipe's"


def _execute(module_name: str, path: Path, shown: str) -> ModuleType:
    if module_name in sys.modules:
        return sys.modules[module_name]
    path = path.resolve()
    package = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(module_name, path, submodule_search_locations=package)
    if spec is None or spec.loader is None:
        raise AlignError(f"the stage file '{shown}' is no Python file", "give a .py file")
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
        return AlignError(f"the stage file is no valid Python: {error.msg}", "correct the file there", place=place)
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
