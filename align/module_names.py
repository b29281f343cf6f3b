"""Names of modules and numbers of layers in a recipe, against the model's own.

PEFT passes over a name that matches nothing as long as another one matches. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from align.base import Base
from align.errors import AlignError
from align.parameterization.lora import HEADS
from align.recipe import Loaded, StagePlan
from align.shelf import nearest
from align.validation import Loc

_NAMES = ("target_modules", "modules_to_save", "exclude_modules", "rank_pattern", "alpha_pattern", "target_parameters")
_LAYERS = ("layers_to_transform", "layers_to_finetune")


def faults(loaded: Loaded, base: Base) -> Iterator[AlignError]:
    """Every name that no module of the base has, every layer that there is not, and weights that cannot be trained.

    Nothing is said of models with experts, whose modules have other names in files than in memory.
    """
    tensors = set(base.tensors())
    modules = {name.rpartition(".")[0] for name in tensors} | set(HEADS)
    if not modules or any(".experts." in name for name in modules):
        return
    layers = {int(part) for name in modules for part in name.split(".") if part.isdigit()}
    seen = set[str]()
    for plan in loaded.stages:
        for at, what, remedy in _wrong(plan.method_keys.model_dump(mode="json"), modules | tensors, layers):
            fault = loaded.document.fault((*_place(plan), *at), what, remedy)
            if str(fault) not in seen:  # a default that several stages share
                seen.add(str(fault))
                yield fault


def _place(plan: StagePlan) -> Loc:
    own = plan.keys.parameterization is not None
    return ("stages", plan.id, "parameterization") if own else ("parameterization",)


def _wrong(settings: dict[str, Any], modules: set[str], layers: set[int]) -> Iterator[tuple[Loc, str, str]]:
    """Where, what and the way out, for each wrong name in the settings of a parameterization."""
    for key, value in settings.items():
        if key in _NAMES and isinstance(value, list | dict):
            for name in value:
                if not _matches(str(name), modules):
                    yield (
                        (key,),
                        f"'{key}' names '{name}', which no module of the model is called",
                        _called(name, modules),
                    )
        elif key in _LAYERS and value not in (None, "auto"):
            for number in value if isinstance(value, list) else [value]:
                if layers and number not in layers:
                    what = f"'{key}' names layer {number}, and the model has layers {min(layers)} to {max(layers)}"
                    yield (key,), what, "name layers that exist"
        elif isinstance(value, dict):
            for at, what, remedy in _wrong(value, modules, layers):
                yield (key, *at), what, remedy


def _matches(name: str, modules: set[str]) -> bool:
    """As PEFT matches: the end of a module's name, or a pattern for it."""
    try:
        pattern = re.compile(rf"(.*\.)?({name})$")
    except re.error:
        return any(module == name or module.endswith(f".{name}") for module in modules)
    return any(pattern.match(module) for module in modules)


def _called(name: str, modules: set[str]) -> str:
    ends = _ends(modules)
    close = nearest(str(name).rpartition(".")[2], ends)
    return f"did you mean '{close}'?" if close else f"choose from {', '.join(ends)}"


def _ends(modules: set[str]) -> Sequence[str]:
    """The last parts of the names of modules inside layers."""
    return sorted({name.rpartition(".")[2] for name in modules if re.search(r"\.\d+\.", name)})
