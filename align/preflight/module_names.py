"""Names of modules and numbers of layers in a recipe, against the model's own.

PEFT passes over a name that matches nothing as long as another one matches, takes what is saved whole out of what gets
an adapter, and says what it cannot adapt only when the model is there. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from align.errors import AlignError, nearest
from align.libraries import peft as peft_source
from align.parameterization.chain import Layer
from align.parameterization.method import files
from align.parameterization.methods.lora import HEADS
from align.penalties import keys as penalties
from align.policy.base import Base
from align.preflight.base_modules import Kind, Modules, ending, last_parts, layer_of
from align.recipe.document import Loc
from align.recipe.plan import Loaded, StagePlan

_LISTS = ("target_modules", "feedforward_modules", "modules_to_save", "exclude_modules")
_PATTERNS = ("rank_pattern", "alpha_pattern")
_LAYERS = ("layers_to_transform", "layers_to_finetune")
_NAME = re.compile(r"[\w.]+")

Fault = tuple[str, str, str]  # the key, what is wrong, the way out


def faults(loaded: Loaded, base: Base) -> Iterator[AlignError]:
    """Every name in a parameterization that means no module, one that it cannot be used on, or none that it acts on.

    Of models with experts, whose modules have other names in files than in memory, only what is no name at all.
    """
    modules = Modules.of(base)
    if not modules.kinds:
        return
    seen = set[str]()
    for plan in loaded.stages:
        for path, settings in _settings((), plan.method_keys.model_dump(mode="json")):
            names = _Names(settings, modules, plan.layer)
            wrong = [*names.faults(), *_of_reward(plan, settings)]
            for key, what, remedy in wrong:
                fault = loaded.document.fault((*_place(plan), *path, key), what, remedy)
                if str(fault) not in seen:  # a default that several stages share
                    seen.add(str(fault))
                    yield fault
            for key, what, remedy in () if wrong else _of_penalties(plan, names):  # names that mean something
                yield loaded.document.fault(("stages", plan.id, key), what, remedy)


def _place(plan: StagePlan) -> Loc:
    own = plan.keys.parameterization is not None
    return ("stages", plan.id, "parameterization") if own else ("parameterization",)


def _of_reward(plan: StagePlan, settings: dict[str, Any]) -> Iterator[Fault]:
    """A stage of its own words; of a parameterization that all stages share it takes what it can."""
    if plan.program.stage.gives == "reward" and plan.keys.parameterization is not None:
        for entry in settings.get("modules_to_save") or []:
            if str(entry).rpartition(".")[2] in HEADS:
                what = f"'modules_to_save' names '{entry}', but a reward model has no language-model head"
                yield "modules_to_save", what, "leave it out: its own head, `score`, is always trained"


def _of_penalties(plan: StagePlan, names: _Names) -> Iterator[Fault]:
    """What a penalty on weights acts on: the product of an adapter's matrices, which an embedding only looks up."""
    wrong = [] if names.modules.experts or plan.trains_base else names.embeddings
    for key in penalties.active(plan.keys.model_dump(include={penalties.EWC, penalties.L2_SP})) if wrong else ():
        what = f"stage '{plan.id}' cannot have `{key}`: it acts on LoRA of linear layers, and '{wrong[0]}' is none"
        yield key, what, f"leave '{wrong[0].rpartition('.')[2]}' out of `target_modules`, or remove `{key}`"


def _settings(path: Loc, settings: dict[str, Any]) -> Iterator[tuple[Loc, dict[str, Any]]]:
    """The mappings of a parameterization that hold names: `lora`, `peft`, `adapter`, `spectrum`."""
    yield path, settings
    for key, value in settings.items():
        if isinstance(value, dict) and key not in _PATTERNS:
            yield from _settings((*path, key), value)


@dataclass(frozen=True)
class _Names:
    """The names in one mapping of settings."""

    settings: dict[str, Any]
    modules: Modules
    layer: Layer

    def faults(self) -> Iterator[Fault]:
        """In the order of the checks: what is no name, what means nothing, what it cannot act on."""
        yield from self._layers()
        for key in _LISTS:
            value = self.settings.get(key)
            for entry in value if isinstance(value, list) else []:
                yield from self._entry(key, str(entry))
            if isinstance(value, str) and value not in ("auto", "all-linear"):
                yield from self._pattern(key, value)
        if self.modules.experts:
            return
        for entry in self.settings.get("target_parameters") or []:
            if not self.modules.parameters(entry):
                yield "target_parameters", *self._unknown("target_parameters", entry, "weight")
        for key in _PATTERNS:
            for entry in self.settings.get(key) or {}:
                yield from self._of_targets(key, str(entry))
        yield from self._subset()

    def _layers(self) -> Iterator[Fault]:
        layers = self.modules.layers
        for key in _LAYERS:
            value = self.settings.get(key)
            for number in [] if value in (None, "auto") else value if isinstance(value, list) else [value]:
                if layers and number not in layers:
                    what = f"'{key}' names layer {number}, but the model has layers {min(layers)} to {max(layers)}"
                    yield key, what, "name layers that exist"

    def _entry(self, key: str, entry: str) -> Iterator[Fault]:
        """An entry of a list is a name."""
        if not _NAME.fullmatch(entry):
            what = f"'{key}' lists '{entry}', but a list contains module names, not patterns"
            meant = [] if self.modules.experts else last_parts(_matched(self.modules.kinds, entry))
            yield key, what, f"write {', '.join(sorted(meant))}" if meant else "write full names, or their last parts"
        elif not self.modules.experts:
            found = self.modules.named(entry)
            if found:
                yield from self._usable(key, entry, found)
            else:
                yield key, *self._unknown(key, entry, "module")

    def _pattern(self, key: str, text: str) -> Iterator[Fault]:
        """A text alone is a regular expression for whole names."""
        try:
            found = self.modules.whole(text)
        except re.error:
            yield key, f"'{key}' is '{text}', which is not a regular expression", "write a list of names"
            return
        if self.modules.experts:
            return
        if found:
            yield from self._usable(key, text, found, "matches")
            return
        what = f"'{key}' is '{text}': a single string is a pattern for full names, and it matches no module"
        close = text if self.modules.named(text) else nearest(text.rpartition(".")[2], self._ends)
        yield key, what, f"write the list [{close}]" if close else f"write a list of {', '.join(self._ends)}"

    def _usable(self, key: str, entry: str, found: list[str], means: str = "names") -> Iterator[Fault]:
        """What gets an adapter has to be a linear layer, and to be left to it."""
        if key not in ("target_modules", "feedforward_modules") or self.layer.traits.any_module:
            return
        wrong = next((name for name in found if self.modules.kinds[name] in self._unusable), None)
        within = self.settings.get("layers_to_transform")
        layers = within if isinstance(within, list) else [within]
        if wrong is not None:
            inside = [name for name in self.modules.projections if name.startswith(f"{wrong}.")]
            what = f"'{key}' {means} '{wrong if means == 'matches' else entry}', which is not a linear layer"
            yield key, what, f"name {', '.join(last_parts(inside or self.modules.projections))}"
        elif within is not None and not any(layer_of(name) in layers for name in found):
            what = f"'{key}' {means} '{entry}', which is not in any layer of 'layers_to_transform'"
            yield key, what, "leave it out"
        elif all(name in self._excluded for name in found):
            yield key, f"'{key}' {means} '{entry}', which 'exclude_modules' excludes", "remove it from one of them"
        elif all(self._is_saved(name) for name in found):
            what = f"'{key}' {means} '{entry}', which 'modules_to_save' trains in full, without an adapter"
            yield key, what, "remove it from one of them"

    def _of_targets(self, key: str, entry: str) -> Iterator[Fault]:
        """A key of `rank_pattern` is a pattern for the ends of what gets an adapter."""
        try:
            everywhere = ending([*self.modules.kinds, *self.modules.tensors], entry)
        except re.error:
            yield key, f"'{key}' has '{entry}', which is not a regular expression", "write the end of a module's name"
            return
        if not everywhere:
            yield key, *self._unknown(key, entry, "module")
        elif not ending(self._targeted, entry):
            what = f"'{key}' names '{entry}', which gets no adapter"
            yield key, what, f"name one that does: {', '.join(last_parts(self._targeted))}"

    def _subset(self) -> Iterator[Fault]:
        """IA3 scales the inputs of some of its modules."""
        targets, inner = self.settings.get("target_modules"), self.settings.get("feedforward_modules")
        if isinstance(targets, list) and isinstance(inner, list):
            for entry in inner:
                if entry not in targets and self.modules.named(str(entry)):
                    what = f"'feedforward_modules' names '{entry}', which 'target_modules' does not"
                    yield "feedforward_modules", what, "name it in both"

    @cached_property
    def _targeted(self) -> list[str]:
        """The modules and weights that get an adapter."""
        value, found = self.settings.get("target_modules"), self.modules.projections
        if isinstance(value, list):
            found = [name for entry in value for name in self.modules.named(str(entry))]
        elif isinstance(value, str) and value not in ("auto", "all-linear"):
            found = self.modules.whole(value)
        found = [name for name in found if name not in self._excluded and not self._is_saved(name)]
        return found + [
            name for entry in self.settings.get("target_parameters") or [] for name in self.modules.parameters(entry)
        ]

    @property
    def embeddings(self) -> list[str]:
        """Those that get an adapter."""
        given = self.settings.get("target_modules")
        return [name for name in self._targeted if self.modules.kinds.get(name) == "embedding"] if given else []

    @cached_property
    def _excluded(self) -> set[str]:
        value = self.settings.get("exclude_modules") or []
        found = [self.modules.whole(value)] if isinstance(value, str) else map(self.modules.named, value)
        return {name for names in found for name in names}

    def _is_saved(self, name: str) -> bool:
        whole = {saved for entry in self.settings.get("modules_to_save") or [] for saved in self.modules.named(entry)}
        return any(name == saved or name.startswith(f"{saved}.") for saved in whole)

    @cached_property
    def _unusable(self) -> set[Kind]:
        """What cannot get an adapter of the method."""
        method = self.layer.keys.method
        own = "lora" if method in files() else method
        return {"vector", "block"} if peft_source.adapts_embeddings(own) else {"vector", "block", "embedding"}

    @property
    def _ends(self) -> list[str]:
        """The last parts of the names of modules inside layers."""
        return sorted(set(last_parts(name for name in self.modules.kinds if re.search(r"\.\d+\.", name))))

    def _unknown(self, key: str, entry: str, thing: str) -> tuple[str, str]:
        close = nearest(entry.rpartition(".")[2], [*self._ends, *last_parts(self.modules.kinds)])
        remedy = f"did you mean '{close}'?" if close else f"choose from {', '.join(self._ends)}"
        return f"'{key}' names '{entry}', but no {thing} of the model has that name", remedy


def _matched(names: Any, pattern: str) -> list[str]:
    try:
        return [name for name in ending(names, pattern) if not name[-1].isdigit()]
    except re.error:
        return []
