"""`training:` of a recipe: which of the trainer's own argument names a user may set, and to what.

align/recipe/verdicts.py has what becomes of each, align/recipe/argument_values.py what each may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from align.errors import nearest
from align.libraries.fields import Argument
from align.libraries.trl import known
from align.recipe import argument_values, optimization, other_tools, verdicts
from align.recipe.argument_values import Fault, choices
from align.recipe.verdicts import Beside, Values

__all__ = [
    "Argument",
    "Fault",
    "check",
    "choices",
    "idle",
    "known",
    "noted",
    "one_of_values",
    "open_to_users",
    "said",
    "used",
]

_WHAT = {
    "stage": "the training argument '{name}' is set by the stage",
    "engine": "the training argument '{name}' is set by align",
    "renamed": "the training argument '{name}' has been renamed",
    "nothing": "the training argument '{name}' has no effect here",
}
# Both would say the same, and one of them would be passed over.
_TWICE = (
    ("gradient_checkpointing", "activation_checkpointing"),
    ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
)


def open_to_users(config: str, reserved: Mapping[str, str] = MappingProxyType({})) -> dict[str, Argument]:
    """The arguments of a TRL config that a recipe may set; `reserved` are those that a stage sets itself."""
    return {
        name: argument
        for name, argument in known(config).items()
        if verdicts.of(config, name, reserved=reserved).kind == "acts"
    }


def check(
    config: str,
    training: Mapping[str, Any],
    recipe_keys: frozenset[str],
    reserved: Mapping[str, str] = MappingProxyType({}),
) -> list[Fault]:
    """Faults of a `training:` mapping, none when all is well; a remedy may hold `{stage}` for the stage's name.

    Args:
        recipe_keys: the stage's own recipe keys: an argument of that name belongs one level up.
        reserved: arguments that the stage sets itself, each with what to write instead.
    """
    each = [_fault(config, name, value, recipe_keys, reserved) for name, value in training.items()]
    found = [fault for fault in each if fault is not None]
    wrong = {fault.name for fault in found}
    whole = {name: value for name, value in training.items() if name not in wrong}
    return [*found, *optimization.faults(whole), *_twice(whole)]


def _twice(training: Mapping[str, Any]) -> Iterator[Fault]:
    for names in _TWICE:
        if all(name in training for name in names):
            what = f"`{names[0]}` and `{names[1]}` are two names for the same argument"
            yield Fault(names[1], what, "write one of them")
    if training.get("bf16") and training.get("fp16"):
        yield Fault("fp16", "`bf16` and `fp16` cannot both be on", "write one of them")


def _fault(
    config: str, name: str, value: Any, recipe_keys: frozenset[str], reserved: Mapping[str, str]
) -> Fault | None:
    if name in recipe_keys and name not in reserved:
        remedy = f"write `{name}:` one level up, next to `training:`"
        return Fault(name, f"'{name}' is a key of the stage, not of `training`", remedy)
    arguments = known(config)
    verdict = verdicts.of(config, name, reserved=reserved)
    if verdict.kind == "nothing" and name in arguments and value == arguments[name].default:
        return None  # as it is anyhow
    if verdict.kind in _WHAT and (name in arguments or verdict.kind in ("stage", "engine")):
        return Fault(name, _WHAT[verdict.kind].format(name=name), verdict.remedy)
    if name not in arguments:
        return Fault(name, f"trl.{config} has no argument '{name}'", _meant(config, name, recipe_keys, reserved))
    return argument_values.fault(arguments[name], value, config)


def _meant(config: str, name: str, recipe_keys: frozenset[str], reserved: Mapping[str, str]) -> str:
    """The argument, or the key elsewhere in the recipe, that a name most likely means."""
    arguments = open_to_users(config, reserved)
    keys = {*recipe_keys, *(f"training.{argument}" for argument in arguments)}
    if other_tools.is_known(name, keys):
        return other_tools.remedy(name, ("stages", "{stage}", "training"), keys=keys)
    close = nearest(name, [*arguments, *recipe_keys])
    return f"did you mean '{close}'?" if close else f"see the arguments of trl.{config}"


# ---- what acts beside another alone ---------------------------------------------------------------------------------


def used(name: str, values: Mapping[str, Any]) -> bool:
    """Whether an argument does something beside the other values of its stage."""
    return next(_unmet({**verdicts.BESIDE.get(name, {}), **verdicts.NOTED.get(name, {})}, values), None) is None


def idle(given: Mapping[str, Any], values: Mapping[str, Any], config: str, keys: frozenset[str]) -> Iterator[Fault]:
    """Arguments that do nothing beside what else is said of their stage.

    Args:
        given: what the recipe says in `training:`.
        values: of all arguments and keys of the stage, defaults filled in.
        keys: names of the stage's own keys.
    """
    for name in _said(given, config):
        for other, wanted in _unmet(verdicts.BESIDE.get(name, {}), values):
            if wanted.others and wanted != verdicts.SET:
                what = f"'{{key}}' has no effect with {one_of_values(other, (values[other],))}"
            else:
                what = f"'{{key}}' has no effect without {said(other, wanted)}"
            yield Fault(name, what, _way_out(name, other, wanted, keys))
            break


def noted(given: Mapping[str, Any], values: Mapping[str, Any], config: str) -> Iterator[str]:
    """Sentences about arguments that say how often or how long, and are passed over."""
    for name in _said(given, config):
        for other, _ in _unmet(verdicts.NOTED.get(name, {}), values):
            yield f"`{name}` has no effect with `{other}: {_yaml(values.get(other))}`"


def _said(given: Mapping[str, Any], config: str) -> Iterator[str]:
    """The arguments that are not given as they are anyhow."""
    arguments = known(config)
    yield from (name for name, value in given.items() if name in arguments and value != arguments[name].default)


def _unmet(beside: Beside, values: Mapping[str, Any]) -> Iterator[tuple[str, Values]]:
    """What is missing beside an argument; another stage may have no such argument or key."""
    yield from ((name, wanted) for name, wanted in beside.items() if name in values and values[name] not in wanted)


def _way_out(name: str, other: str, wanted: Values, keys: frozenset[str]) -> str:
    if name == "warmup_steps":
        return "write `lr_scheduler_type: constant_with_warmup`, or leave it out"
    if wanted.others and wanted != verdicts.SET:
        return "leave one of them out"
    written = f"{other}:" if wanted == verdicts.SET else f"{other}: {_yaml(wanted.listed[0])}"
    place = "next to `training:`" if other in keys else "next to it"
    return f"write `{written}` {place}, or leave it out"


def said(other: str, wanted: Values) -> str:
    """`packing: true`, `loss_type: grpo` or `dapo`; of any value, `eval_data`."""
    return f"`{other}`" if wanted == verdicts.SET else one_of_values(other, wanted.listed)


def one_of_values(other: str, values: tuple[Any, ...]) -> str:
    """`a: 1`, `2` or `3`, each as YAML writes it."""
    first, *rest = (_yaml(value) for value in values)
    named = [f"`{other}: {first}`", *(f"`{value}`" for value in rest)]
    return " or ".join(filter(None, (", ".join(named[:-1]), named[-1])))


def _yaml(value: Any) -> str:
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
