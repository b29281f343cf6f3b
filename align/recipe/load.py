"""The typed recipe: which base model, data, parameterization and hyper-parameters.

`load(path, overrides)` answers in milliseconds, without torch, and reports every fault of the file at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import errors, shipped, user_paths
from align.errors import AlignError, FaultList
from align.parameterization import method as methods
from align.parameterization.method import Method
from align.parameterization.traits import ParameterizationKeys
from align.penalties import keys as penalties
from align.policy.base import LAB
from align.recipe import (
    contradictions,
    document,
    gate_actions,
    launch_refusals,
    other_tools,
    pipeline,
    replays,
    training_arguments,
    verdicts,
)
from align.recipe.document import Document, dotted
from align.recipe.keys import Recipe
from align.recipe.launch_keys import LaunchKeys
from align.recipe.plan import Loaded, StagePlan
from align.recipe.validation import validate
from align.run_folder.launch import Launch
from align.stage.declaration import Stage
from align.stage.keys import StageKeys
from align.stage.rewrite_keys import scoring


def locate(name: str) -> Path:
    """The file of a recipe given by path, or of a shipped one given by name or by `recipes/NAME.yaml`.

    Raises:
        AlignError: there is no such recipe.
    """
    path = Path(name)
    if user_paths.there(path, Path.is_file):
        return path
    bare = name.removeprefix("./").removeprefix("recipes/").removesuffix(".yaml")
    found = shipped.find("recipes", bare)
    if found is not None:
        return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found
    raise AlignError(f"there is no recipe '{name}'", errors.did_you_mean(bare, shipped.names("recipes")))


def is_recipe(name: str) -> bool:
    """Whether a name means a recipe rather than data: it ends as one, or a shipped one has it."""
    if name.endswith((".yaml", ".yml")):
        return True
    return not user_paths.there(Path(name)) and shipped.find("recipes", name) is not None


def load(path: Path, overrides: Sequence[str] = (), *, text: str | None = None) -> Loaded:
    """Read, override and check a recipe.

    Args:
        path: the YAML file; messages show it as it is given.
        overrides: `stages.dpo.beta=0.2`, each as given to `--set`.
        text: of the file, where it has been read already.

    Raises:
        AlignError, Faults: every fault with file, line and column.
    """
    read = document.read(path) if text is None else document.parse(text, str(path))
    faults = FaultList()
    for override in overrides:
        with faults.collect():
            read.set(override)
    faults.raise_any()
    return check(read, path.resolve().parent)


def check(read: Document, root: Path) -> Loaded:
    """Check a recipe that was read or built. A fault in one part does not hide those of the others."""
    faults = FaultList()
    recipe, default = None, None
    nodes = pipeline.resolve(read, root, faults)
    with faults.collect():
        recipe = validate(read, Recipe, _without_stage_keys(read, nodes, faults))
    shared = read.data.get("parameterization", {"method": "full"})
    if isinstance(shared, dict):
        with faults.collect():
            default = _method(read, shared, ("parameterization",))
    entries = {node.id: _entry(read, node, faults) for node in nodes}
    faults.found.sort(key=_in_file)
    faults.raise_any()
    assert recipe is not None and default is not None
    if recipe.forgetting.probes == "auto":
        recipe.forgetting.probes = "lab" if recipe.model.base == LAB else "general"
    plans, warnings = [], list[str]()
    for node in nodes:
        entry = entries[node.id]
        assert entry is not None
        launch = (entry.launch or recipe.launch).launch
        plan = _plan(recipe, node, entry.keys, _computing(entry.method or default, recipe.model.dtype), launch)
        plans.append(plan)
        warnings += [f"stage {node.id}: {text}" for text in plan.method.advise(plan.method_keys)]
        warnings += contradictions.notes(plan)
    layers = contradictions.of_chain(read, plans, faults)
    for plan in plans:
        faults.found += contradictions.of_stage(read, plan, layers)
    faults.found += contradictions.of_probes(read, recipe.forgetting, plans)
    faults.found += replays.faults(read, plans)
    faults.found += gate_actions.faults(read, recipe.forgetting, plans, layers)
    faults.found += launch_refusals.faults(read, plans, recipe)
    warnings += gate_actions.notes(recipe.forgetting, plans, layers)
    warnings += contradictions.of_precision(plans) + contradictions.of_base_row(plans, recipe.forgetting)
    warnings += contradictions.of_idle_keys(recipe.forgetting)
    faults.raise_any()
    trouble = recipe.notify.trouble(root) if recipe.notify else None
    warnings += [trouble] if trouble else []
    return Loaded(recipe, plans, read, root, warnings)


def _in_file(fault: AlignError) -> tuple[str, int, int]:
    """Where a fault stands: they are told from the top of the file down."""
    place = fault.place
    return (place.file, place.line or 0, place.column or 0) if place else ("", 0, 0)


def _without_stage_keys(read: Document, nodes: list[pipeline.Node], faults: FaultList) -> dict[str, Any]:
    """The top level without keys that belong to a stage, each of which is a fault."""
    foreign = [name for name in read.data if name not in Recipe.model_fields]
    told = {name: _of_a_stage(name, nodes) for name in foreign}
    for name, (what, remedy) in ((name, fault) for name, fault in told.items() if fault is not None):
        faults.found.append(read.fault((name,), what, remedy))
    return {name: value for name, value in read.data.items() if told.get(name) is None}


def _of_a_stage(name: str, nodes: list[pipeline.Node]) -> tuple[str, str] | None:
    """What is wrong with a key at the top that a stage has, or that another tool has for a key of ours."""
    for node in nodes:
        stage = node.program.stage
        open_ = training_arguments.open_to_users(stage.arguments, stage.reserved) if stage.arguments else {}
        place = name if name in stage.keys.model_fields else f"training.{name}" if name in open_ else None
        if place:
            what = f"'{name}' is a key of a stage, not of the recipe"
            return what, f"write it as `stages.{node.id}.{place}`"
        keys = {*stage.keys.model_fields, *(f"training.{known}" for known in open_)}
        if other_tools.is_known(name, keys):
            return f"unknown key '{name}'", other_tools.remedy(name, (), node.id, keys)
    return (f"unknown key '{name}'", verdicts.ENGINE[name]) if name in verdicts.ENGINE else None


@dataclass(frozen=True)
class _Entry:
    """The checked entry of a stage; `method` where it has a parameterization of its own, `launch` likewise."""

    keys: StageKeys
    method: tuple[Method, ParameterizationKeys] | None
    launch: LaunchKeys | None


def _entry(read: Document, node: pipeline.Node, faults: FaultList) -> _Entry | None:
    """Check what the recipe says of one stage; None where something is wrong."""
    at = ("stages", node.id)
    stage, entry = node.program.stage, read.data["stages"][node.id]
    if not isinstance(entry, dict):
        faults.found.append(read.fault(at, f"the stage '{node.id}' has no keys", "write at least `data:` under it"))
        return None
    if node.reward is not None and "reward" in stage.keys.model_fields and entry.get("reward") is None:
        entry = {**entry, "reward": node.reward}
    keys = method = launch = None
    with faults.collect():
        keys = validate(read, stage.keys, _without_arguments(read, node, entry, faults), at, _closed(stage))
    own = entry.get("parameterization")
    if isinstance(own, dict):
        with faults.collect():
            method = _method(read, own, (*at, "parameterization"))
    if isinstance(entry.get("launch"), dict):
        with faults.collect():
            launch = validate(read, LaunchKeys, entry["launch"], (*at, "launch"))
    given = entry.get("training")
    if isinstance(given, dict) and stage.arguments:
        for name, what, remedy in training_arguments.check(
            stage.arguments, given, _recipe_keys(stage.keys), stage.reserved
        ):
            path = (*at, "training", name)
            told = what.replace("{key}", dotted(path)), remedy.replace("{stage}", node.id)
            faults.found.append(read.fault(path, *told))
    if keys is not None and keys.eval_data is None and keys.training.get("eval_strategy") in ("steps", "epoch"):
        what = f"the stage '{node.id}' has nothing to evaluate on"
        remedy = "write `eval_data:` next to `training:`"
        faults.found.append(read.fault((*at, "training", "eval_strategy"), what, remedy))
    if keys is not None and entry.get("eval_data") is not None and not stage.evaluates:
        what = f"the stage '{node.program.name}' computes no loss on held-out rows"
        faults.found.append(
            read.fault((*at, "eval_data"), what, "remove `eval_data`: the probes measure what the stage learns")
        )
    if keys is not None and keys.replay is not None and not stage.replays:
        what = f"the stage '{node.program.name}' takes no replayed rows"
        if stage.gives == "reward":
            what = f"the stage '{node.program.name}' cannot replay: a reward model has no language-model head"
        faults.found.append(read.fault((*at, "replay"), what, "remove `replay` here"))
    return None if keys is None else _Entry(keys, method, launch)


def _without_arguments(read: Document, node: pipeline.Node, entry: dict[str, Any], faults: FaultList) -> dict[str, Any]:
    """A stage's entry without training arguments that stand beside `training:`, each of which is a fault."""
    stage = node.program.stage
    foreign = [name for name in entry if name not in stage.keys.model_fields]
    allowed = training_arguments.open_to_users(stage.arguments, stage.reserved) if foreign and stage.arguments else {}
    misplaced = [name for name in foreign if name in allowed]
    for name in misplaced:
        what = f"'{name}' is a training argument, not a key of the stage"
        faults.found.append(read.fault(("stages", node.id, name), what, "write it under `training:`"))
    return {name: value for name, value in entry.items() if name not in misplaced}


def _closed(stage: Stage) -> frozenset[str]:
    """The keys of every stage that this one refuses, whatever their value."""
    refused = {
        "replay": not stage.replays,
        "eval_data": not stage.evaluates,
        penalties.EWC: stage.gives != "policy",
        penalties.L2_SP: stage.gives != "policy",
    }
    return frozenset(name for name, no in refused.items() if no)


def _recipe_keys(keys: type[StageKeys]) -> frozenset[str]:
    return frozenset(keys.model_fields) - {"training"}


def _method(read: Document, data: dict[str, Any], at: tuple[str, ...]) -> tuple[Method, ParameterizationKeys]:
    name = data.get("method")
    if not isinstance(name, str):
        listed = ", ".join(methods.files())
        remedy = f"write `method:` with one of: {listed}, or a PEFT method that `align list` shows"
        raise read.fault(at, "the parameterization has no method", remedy)
    try:
        method = methods.load(name)
    except AlignError as error:
        raise read.fault((*at, "method"), error.what, error.remedy) from None
    return method, validate(read, method.Keys, data, at)


def _computing(method: tuple[Method, ParameterizationKeys], dtype: str) -> tuple[Method, ParameterizationKeys]:
    """With what 4-bit weights are computed in: `model.dtype` where the recipe says nothing, as in TRL's scripts."""
    keys, name = method[1], "bnb_4bit_compute_dtype"
    held = getattr(keys, "quantization", None)
    if held is None or held.bits != 4 or dtype == "auto" or name in held.model_fields_set:
        return method
    held = held.model_copy(update={name: dtype})
    held.model_fields_set.discard(name)  # the recipe has not given it
    return method[0], keys.model_copy(update={"quantization": held})


def _plan(
    recipe: Recipe, node: pipeline.Node, keys: StageKeys, method: tuple[Method, ParameterizationKeys], launch: Launch
) -> StagePlan:
    stage = node.program.stage
    shared = recipe.replay if stage.replays is True else None
    replay = keys.replay if "replay" in keys.model_fields_set and stage.replays else shared
    training = _training(stage.defaults, method[0].traits(method[1]).trains_base, keys.training)
    sources, _ = scoring(keys)
    rewards = tuple(dict.fromkeys(one.source for one in sources if one.source in recipe.stages))
    return StagePlan(node.id, node.program, node.policy, rewards, keys, *method, replay, training, launch)


# Where the engine departs from TRL's defaults, for every stage.
_COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "train_sampling_strategy": "group_by_length",
    "save_strategy": "steps",
    "save_steps": 0.25,  # a share of all steps: enough to lose little, few enough to cost little
    "save_total_limit": 2,  # the one before a torn one is still there
    "logging_steps": 5,
    "logging_first_step": True,
}


def _training(defaults: dict[str, dict[str, Any]], trains_base: bool, given: dict[str, Any]) -> dict[str, Any]:
    """What the recipe says, and of the defaults those that do something beside it."""
    family = defaults.get("full" if trains_base else "adapter", {})
    whole = {**_COMMON, **defaults.get("all", {}), **family, **given}
    return {name: value for name, value in whole.items() if name in given or training_arguments.used(name, whole)}
