"""What a stage is: the declaration at the end of a stage file, and the records that go in and come out.

A stage file declares one `STAGE = Stage(...)`. It is loaded by name (`stages/sft.py` is `sft`) or by path
(`./my_stage.py`), in the torch-free parent too: import torch and trl inside its functions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from align import shelf
from align.data.formats import Kind
from align.data.sources import DataSource
from align.errors import AlignError, Place

if TYPE_CHECKING:
    from align.job import Job

Gives = Literal["policy", "reward"]


class Replay(BaseModel):
    """Rows of earlier knowledge mixed into a stage's own, so that it is not forgotten."""

    model_config = ConfigDict(extra="forbid")
    data: DataSource | list[DataSource] = Field(description="the rows to mix in: a file, a folder, a Hub id, lab/general")
    ratio: float = Field(ge=0, lt=1, description="their share of the training rows: 0.05 is one row in twenty")


class StageKeys(BaseModel):
    """The recipe keys that every stage has. A stage adds its own by a subclass."""

    model_config = ConfigDict(extra="forbid")
    stage: str | None = Field(None, description="the program: a name of `align list`, or ./my_stage.py; default: the "
                              "entry's own name, or what the pipeline says")
    policy: str | None = Field(None, description="the stage whose policy it starts from; `base` is the base model")
    data: DataSource | list[DataSource] = Field(description="what it trains on")
    eval_data: DataSource | list[DataSource] | float | None = Field(
        None, description="held-out rows for a validation loss: a source, or a share of `data` to hold back (0.05)")
    parameterization: dict[str, Any] | None = Field(None, description="replaces the recipe's whole; see align list")
    replay: Replay | None = Field(None, description="replaces the recipe's; `null` means none in this stage")
    training: dict[str, Any] = Field(default_factory=dict, description="the trainer's own argument names")


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
    """

    description: str
    rows: frozenset[Kind]
    train: Callable[[Job], dict[str, float]]
    gives: Gives = "policy"
    keys: type[StageKeys] = StageKeys
    arguments: str | None = None
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    replays: bool = False


@dataclass(frozen=True)
class Program:
    """A stage as found: its declaration, and the identity that a fingerprint takes in."""

    name: str
    path: Path
    stage: Stage
    sha256: str | None  # of the file, for a user's own; a shipped one changes with the version of align


def load(name: str, root: Path) -> Program:
    """Load a shipped stage by name, or a user's file by path (relative to the folder of the recipe).

    Raises:
        AlignError: there is no such stage, or the file declares none or cannot be imported.
    """
    if name.endswith(".py") or "/" in name:
        path = next((p for p in (Path(name), root / name) if p.is_file()), None)
        if path is None:
            raise AlignError(f"there is no stage file '{name}'", f"give a path relative to {root or '.'}")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        module = _execute(f"align_user_stage_{digest[:12]}", path)
        return Program(name, path.resolve(), _declared(module, name), digest)
    found = shelf.find("stages", name)
    if found is None:
        raise AlignError(f"there is no stage '{name}'", shelf.did_you_mean(name, shelf.names("stages")))
    return Program(name, found, _declared(_execute(f"align.stages.{name}", found), name), None)


def _execute(module_name: str, path: Path) -> ModuleType:
    if module_name in sys.modules:
        return sys.modules[module_name]
    package = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(module_name, path, submodule_search_locations=package)
    if spec is None or spec.loader is None:
        raise AlignError(f"'{path}' is no Python file", "give a .py file", place=Place(str(path)))
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # pickled functions and dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        line = _line_in(error, path)
        raise AlignError(f"the stage file cannot be imported: {type(error).__name__}: {error}",
                         "mend it, or see docs/stages.md", place=Place(str(path), line)) from error
    return module


def _line_in(error: BaseException, path: Path) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _declared(module: ModuleType, name: str) -> Stage:
    stage = getattr(module, "STAGE", None)
    if not isinstance(stage, Stage):
        raise AlignError(f"'{name}' declares no stage", "end the file with `STAGE = align.stage.Stage(...)`")
    return stage


class Adapter(BaseModel):
    """One adapter of a policy, in the order in which they were stacked."""

    name: str
    path: str  # relative to the run folder
    method: str
    settings: dict[str, Any]  # the parameterization that made it


class BaseModelIdentity(BaseModel):
    """The base that a policy stands on."""

    name: str  # as the recipe names it: lab, a folder, a Hub id
    path: str  # where its files are on this machine
    identity: str  # hash of its files, or the Hub revision
    revision: str | None = None


class Policy(BaseModel):
    """What a stage hands on: a base with ordered adapters, or full weights in place of the base's own."""

    base: BaseModelIdentity
    quantization: dict[str, Any] | None = None
    weights: str | None = None  # a model folder relative to the run folder, when base weights were trained
    adapters: list[Adapter] = []


class Rows(BaseModel):
    """A table of checked rows in the run folder."""

    path: str
    sha256: str
    count: int
    kinds: list[str]


class Ticket(BaseModel):
    """What one stage is asked to do. Written by the parent, read by the child."""

    format: int = 1
    stage: str
    program: str
    program_path: str
    gives: Gives
    fingerprint: str
    seed: int
    policy: Policy  # what comes in
    model: dict[str, Any]  # the recipe's `model`
    parameterization: dict[str, Any]
    keys: dict[str, Any]  # the stage's resolved recipe entry
    training: dict[str, Any]  # with this stage's defaults filled in
    train: Rows
    evaluation: Rows | None
    replay: Rows | None
    replay_ratio: float
    probes: Any
    measure_base: bool
    processes: int
    trackers: list[str]
    run_name: str
    resume_from: str | None = None


class Outcome(BaseModel):
    """What a stage did. Written last: its presence means that training and measuring are whole."""

    model_config = ConfigDict(extra="allow")
    format: int = 1
    stage: str
    program: str
    status: Literal["done"] = "done"
    fingerprint: str
    seconds: float
    cpu_seconds: float
    measure_seconds: float
    measure_cpu_seconds: float
    world_size: int
    distributed_type: str
    global_batch_size: int
    steps: int
    parameters: dict[str, int]
    parameterization: dict[str, Any]
    metrics: dict[str, Any]
    data: dict[str, Any]
    policy: Policy | None = None
    reward: dict[str, Any] | None = None
    merge: dict[str, Any] | None = None
    peak_memory_bytes: int | None = None
    resumed_from: str | None = None
    warnings: list[str] = []
    versions: dict[str, str] = {}
    artifacts: dict[str, dict[str, Any]]
