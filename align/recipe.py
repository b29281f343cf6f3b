"""The typed recipe: which base model, data, parameterization and hyper-parameters.

`load(path, overrides)` answers in milliseconds, without torch, and reports every fault of the file at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from align import arguments, document, parameterization, pipeline, shelf
from align.document import Document, validate
from align.errors import AlignError, FaultList
from align.forgetting.gate import ForgettingKeys
from align.parameterization import Method, ParameterizationKeys
from align.stage import Program, Replay, StageKeys

VERSION = 1
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelKeys(_Keys):
    """`model:` the base that the chain starts from."""

    base: str = Field(description="`lab` (shipped), a model folder, or a Hugging Face id")
    revision: str | None = Field(None, description="commit, tag or branch of a Hugging Face id")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="of the weights; auto: bfloat16 where the base is frozen, float32 where it is trained")
    attn_implementation: str | None = Field(None, description="as in transformers: sdpa, eager, flash_attention_2")
    chat_template: str | None = Field(None, description="a .jinja file, or `plain`, for a base that has none")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model; said aloud")


class LaunchKeys(_Keys):
    """`launch:` how many processes train."""

    processes: int = Field(1, ge=1, le=1024)


class Recipe(_Keys):
    """A recipe. One level below `stages`, each entry is checked against its stage's own keys."""

    version: Literal[1] = Field(1, description="of the recipe format")
    name: str = Field(description="names the run folder, runs/<name>")
    seed: int = Field(0, ge=0, lt=2**32)
    model: ModelKeys
    pipeline: str | None = Field(None, description="a preset of `align list`, or a .yaml; left out: written in `stages`")
    parameterization: dict[str, Any] = Field(default={"method": "full"}, description="the default of every stage")
    replay: Replay | None = None
    forgetting: ForgettingKeys = ForgettingKeys()
    launch: LaunchKeys = LaunchKeys()
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []
    stages: dict[str, Any] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError("a name is letters, digits, '.', '_' and '-', and begins with a letter or digit")
        return value


@dataclass(frozen=True)
class StagePlan:
    """One stage of a loaded recipe, with everything inherited filled in."""

    id: str
    program: Program
    policy: str  # the id of the stage whose policy it takes, or `base`
    keys: StageKeys
    method: Method
    method_keys: ParameterizationKeys
    replay: Replay | None
    training: dict[str, Any]

    @property
    def global_batch(self) -> tuple[int, int]:
        """Rows of a process in one update: per-device batch size and accumulation steps."""
        return self.training["per_device_train_batch_size"], self.training["gradient_accumulation_steps"]


@dataclass(frozen=True)
class Loaded:
    """A recipe as read and checked, its stages in the order in which they run."""

    recipe: Recipe
    stages: list[StagePlan]
    document: Document
    root: Path  # relative paths of the recipe stand on it
    warnings: list[str]


def locate(name: str) -> Path:
    """The file of a recipe given by path, or of a shipped one given by name or by `recipes/NAME.yaml`.

    Raises:
        AlignError: there is no such recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    bare = name.removeprefix("recipes/").removesuffix(".yaml")
    found = shelf.find("recipes", bare)
    if found is not None:
        return found
    raise AlignError(f"there is no recipe '{name}'", shelf.did_you_mean(bare, shelf.names("recipes")))


def load(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read, override and check a recipe.

    Args:
        path: the YAML file.
        overrides: `stages.dpo.beta=0.2`, each as given to `--set`.

    Raises:
        AlignError, Faults: every fault with file, line and column.
    """
    read = document.read(path)
    for text in overrides:
        _override(read, text)
    return check(read, path.resolve().parent)


def check(read: Document, root: Path) -> Loaded:
    """Check a recipe that was read or built."""
    faults = FaultList()
    with faults.collect():
        recipe = validate(read, Recipe, read.data)
    faults.raise_any()
    nodes = pipeline.resolve(read, root)
    plans, warnings = [], list[str]()
    for node in nodes:
        with faults.collect():
            plan = _plan(read, recipe, node)
            plans.append(plan)
            warnings += [f"stage {node.id}: {text}" for text in plan.method.advise(plan.method_keys)]
    faults.raise_any()
    return Loaded(recipe, plans, read, root, warnings)


def _override(read: Document, text: str) -> None:
    path, equals, value = text.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise AlignError(f"--set takes KEY=VALUE, not '{text}'", "write for example --set stages.dpo.beta=0.2")
    node = read.data
    for part in parts[:-1]:
        inner = node.setdefault(part, {})
        if not isinstance(inner, dict):
            raise AlignError(f"--set {text}: '{part}' holds {inner!r}, which has no keys", "name a key of a mapping")
        node = inner
    node[parts[-1]] = document.scalar(value)
    read.overrides[".".join(parts)] = text


def _plan(read: Document, recipe: Recipe, node: pipeline.Node) -> StagePlan:
    at = ("stages", node.id)
    stage = node.program.stage
    faults = FaultList()
    entry = read.data["stages"][node.id]
    if not isinstance(entry, dict):
        raise read.fault(at, f"the stage '{node.id}' has no keys", "write at least `data:` under it")
    keys = method = method_keys = None
    with faults.collect():
        keys = validate(read, stage.keys, entry, at)
    own = "parameterization" in entry and entry["parameterization"] is not None
    where = (*at, "parameterization") if own else ("parameterization",)
    with faults.collect():
        method, method_keys = _method(read, entry["parameterization"] if own else recipe.parameterization, where)
    given = entry.get("training")
    if isinstance(given, dict) and stage.arguments:
        owned = frozenset(stage.keys.model_fields) - {"training"}
        for name, what, remedy in arguments.check(stage.arguments, given, owned):
            faults.found.append(read.fault((*at, "training", name), what, remedy))
    faults.raise_any()
    assert keys is not None and method is not None and method_keys is not None
    replay = keys.replay if "replay" in keys.model_fields_set else recipe.replay
    if keys.replay is not None and not stage.replays:
        raise read.fault((*at, "replay"), f"the stage '{node.program.name}' cannot mix replay rows into its data",
                         "leave `replay` out here; a recipe-wide one is used by the stages that can")
    training = _training(stage.defaults, method.TRAINS_BASE, keys.training)
    return StagePlan(node.id, node.program, node.policy, keys, method, method_keys, replay if stage.replays else None,
                     training)


def _method(read: Document, data: dict[str, Any], at: tuple[str, ...]) -> tuple[Method, ParameterizationKeys]:
    name = data.get("method") if isinstance(data, dict) else None
    if not isinstance(name, str):
        raise read.fault(at, "the parameterization names no method",
                         f"write `method:` with one of: {', '.join(parameterization.names())}")
    try:
        method = parameterization.load(name)
    except AlignError as error:
        raise read.fault((*at, "method"), error.what, error.remedy) from None
    return method, validate(read, method.Keys, data, at)


# Where the engine departs from TRL's defaults, for every stage.
_COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "train_sampling_strategy": "group_by_length",
    "save_strategy": "steps",
    "save_steps": 0.25,  # a share of all steps: enough to lose little, few enough to cost little
    "save_total_limit": 2,  # the one before a torn one is still there
    "logging_steps": 5,
}


def _training(defaults: dict[str, dict[str, Any]], trains_base: bool, given: dict[str, Any]) -> dict[str, Any]:
    family = defaults.get("full" if trains_base else "adapter", {})
    return {**_COMMON, **defaults.get("all", {}), **family, **given}


def resolved(loaded: Loaded) -> dict[str, Any]:
    """The recipe with every default and inherited value written out; `load` of it gives the same run."""
    data = loaded.recipe.model_dump(mode="json", exclude={"stages", "parameterization", "replay"})
    stages = {}
    for plan in loaded.stages:
        entry = plan.keys.model_dump(mode="json", exclude={"replay", "parameterization"})
        stages[plan.id] = entry | {
            "stage": plan.program.name, "policy": plan.policy,
            "parameterization": plan.method_keys.model_dump(mode="json"),
            "training": plan.training,
        }
        if plan.program.stage.replays:
            stages[plan.id]["replay"] = plan.replay.model_dump(mode="json") if plan.replay else None
    data["pipeline"] = None
    return data | {"stages": stages}
