"""Where adapters' layers stand in a model, how they are put around what is there and taken off, and what cannot act.

Each adapter is built on the bare base, in a PeftModel of its own, and its layers are then taken off. What acts is what
lies in the base: to let an adapter act is to put its layers back, each around what is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from align.bottleneck.layer import ATTRIBUTE, BottleneckLayer, attach, attached, detach
from align.errors import AlignError
from align.parameterization import method as methods


@dataclass(frozen=True)
class Place:
    """Where one adapter changes the base: `parent.child`.

    Attributes:
        name: of that module or bottleneck layer, in the base with this adapter alone.
        top: what the adapter puts there; a bottleneck layer stands behind it instead.
        bottom: the innermost layer of the adapter there, which holds what it is put around. It is `top`, except for
            LoRA on several expert tensors of one module.
    """

    name: str
    parent: nn.Module
    child: str
    top: Any
    bottom: Any

    def on(self) -> None:
        """Put it around what is there now."""
        there = getattr(self.parent, self.child)
        if isinstance(self.top, BottleneckLayer):
            _behind(there, self.top)
        else:
            setattr(self.bottom, self.inner, there)
            setattr(self.parent, self.child, self.top.train(there.training))

    def off(self) -> None:
        """Undo `on`; those that came later are off already."""
        there = getattr(self.parent, self.child)
        if isinstance(self.top, BottleneckLayer):
            _not_behind(there, self.top)
        else:
            setattr(self.parent, self.child, getattr(self.bottom, self.inner))

    def layers(self) -> list[Any]:
        """The adapter's layers there, from the innermost."""
        chain = [self.top]
        while chain[-1] is not self.bottom:
            chain.append(chain[-1].base_layer)
        return chain[::-1]

    @property
    def inner(self) -> str:
        """The name under which `bottom` holds what it is put around."""
        return "original_module" if isinstance(self.bottom, AuxiliaryTrainingWrapper) else "base_layer"


def _behind(block: nn.Module, layer: BottleneckLayer) -> None:
    """Put a bottleneck layer behind a block, and behind those that stand there."""
    if attached(block) is None:
        attach(block, layer)
        return
    name = f"{ATTRIBUTE}_{sum(isinstance(child, BottleneckLayer) for child in block.children())}"
    block.add_module(name, layer.train(block.training))
    block.register_forward_hook(partial(_adapt, name))


def _not_behind(block: nn.Module, layer: BottleneckLayer) -> None:
    [name] = [name for name, child in block.named_children() if child is layer]
    if name == ATTRIBUTE:
        detach(block)
        return
    delattr(block, name)
    for key, hook in list(block._forward_hooks.items()):
        if isinstance(hook, partial) and hook.args == (name,):
            del block._forward_hooks[key]


def _adapt(name: str, block: nn.Module, inputs: Any, output: Any) -> Any:
    return getattr(block, name)(output)


def places(base: nn.Module) -> list[Place]:
    """What the one adapter in a base has put there, from the outermost module on."""
    found = list[Place]()
    for name, module in base.named_modules():
        path, _, child = name.rpartition(".")
        parent = base.get_submodule(path)
        if isinstance(module, BottleneckLayer):
            path, _, child = path.rpartition(".")
            found.append(Place(name, base.get_submodule(path), child, module, module))
        elif isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) and not isinstance(parent, BaseTunerLayer):
            bottom: Any = module
            while isinstance(bottom, BaseTunerLayer) and isinstance(bottom.base_layer, BaseTunerLayer):
                bottom = bottom.base_layer
            found.append(Place(name, parent, child, module, bottom))
    return found


def passes_on(place: Place) -> bool:
    """Whether what an adapter's layer gives depends on what lies beneath it, rather than on the base's weight alone.

    HRA, SHiRA, GLoRA and others compute with a changed copy of the weight, and an adapter beneath them would have no
    say. A row of zeros tells, with 1 added to what comes from beneath; modules that are neither linear nor a norm are
    taken to pass on.
    """
    beneath, own = getattr(place.bottom, place.inner), place.top.get_base_layer()
    weight = getattr(own, "weight", None)
    if not isinstance(weight, torch.Tensor) or isinstance(own, nn.Embedding):
        return True
    width = getattr(own, "in_features", None) or getattr(own, "nx", None) or weight.shape[-1]
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    row = torch.zeros(1, 1, width, dtype=dtype, device=weight.device)
    with torch.no_grad():
        plain = place.top(row)
        hook = beneath.register_forward_hook(lambda module, inputs, output: output + 1)
        try:
            return bool((place.top(row) - plain).abs().max() > 1e-3)
        finally:
            hook.remove()


@dataclass(frozen=True)
class Member:
    """One adapter: PEFT's model of it around the bare base, and where it changes the base.

    Attributes:
        called: PEFT's name of it.
        config: PEFT's.
    """

    host: PeftModel
    called: str
    config: Any
    places: list[Place]

    @property
    def method(self) -> str:
        """By its name in a recipe; qlora and spectrum are lora here."""
        kind = str(self.config.peft_type.value).lower()
        return "adapter" if kind == "bottleneck" else kind

    @property
    def merges(self) -> bool:
        """Whether it can be part of weights."""
        own = methods.load(self.method)
        return own.traits(own.Keys.model_validate({"method": self.method})).merges

    def layers(self) -> list[Any]:
        """Its layers in the order of their merge."""
        around = [place for place in self.places if isinstance(place.top, BaseTunerLayer)]
        return [layer for place in around for layer in place.layers()]

    def parameters(self, base: nn.Module) -> dict[str, nn.Parameter]:
        """Its parameters, under PEFT's name of it, as they are called in the base when it is alone there."""
        known, found = set[int](), dict[str, nn.Parameter]()
        for place in self.places:
            for depth, layer in enumerate(reversed(place.layers())):
                for key, parameter in layer.named_parameters():
                    parts = key.split(".")
                    if self.called in parts and place.inner not in parts and id(parameter) not in known:
                        known.add(id(parameter))  # some methods share one among their layers
                        found[f"{place.name}{'.base_layer' * depth}.{key}"] = parameter
        known |= {id(parameter) for parameter in base.parameters()}
        return found | {key: each for key, each in self.host.named_parameters() if id(each) not in known}

    def weights_beneath(self) -> dict[int, nn.Parameter]:
        """The base's parameters that its merge changes, by identity."""
        around = [place.top for place in self.places if isinstance(place.top, BaseTunerLayer)]
        return {id(p): p for top in around for p in top.get_base_layer().parameters(recurse=False)}


def built(base: nn.Module, called: str, build: Callable[[], Any]) -> Member:
    """Build an adapter on a base in which no other lies, and take it off again; the mode stays as it was.

    Args:
        called: PEFT's name of it.
        build: puts it on the base, and returns its PeftModel.
    """
    mode, found = base.training, list[Place]()
    try:
        host = build()
    finally:  # also of what PEFT refused half-way
        vars(base).pop("peft_config", None)
        found = places(base)
        for place in reversed(found):
            place.off()
        base.train(mode)
    return Member(host, called, host.peft_config[called], found)


def refuse_overlaps(chosen: Mapping[str, Member]) -> None:
    """Only one adapter can act on a module that one of them trains whole, and only one has prompts.

    Raises:
        AlignError: two of these cannot act together.
    """
    prompts = [name for name, member in chosen.items() if member.config.is_prompt_learning]
    if len(prompts) > 1:
        raise AlignError(f"'{prompts[0]}' and '{prompts[1]}' both have prompts", "activate one of them at a time")
    placed = [(name, place) for name, member in chosen.items() for place in member.places]
    for owner, whole in placed:
        if isinstance(whole.top, AuxiliaryTrainingWrapper):
            inside = {id(module) for module in whole.top.original_module.modules()}
            for name, place in placed:
                same = (place.parent, place.child) == (whole.parent, whole.child)
                if name != owner and (same or id(place.parent) in inside):
                    what = f"'{owner}' and '{name}' cannot be active together: '{owner}' trains {whole.name} in full"
                    raise AlignError(what, "activate one of them at a time")


def refuse_bypass(chosen: Mapping[str, Member]) -> None:
    """An adapter that does not ask those beneath it cannot act over them.

    Args:
        chosen: those that act, in order; their layers lie in the base.

    Raises:
        AlignError: one of them does not.
    """
    seen = dict[tuple[int, str], str]()
    for name, member in chosen.items():
        stacked = [place for place in member.places if (id(place.parent), place.child) in seen]
        wraps = [place for place in stacked if not isinstance(place.top, BottleneckLayer)]
        if wraps and not passes_on(wraps[0]):
            beneath = seen[id(wraps[0].parent), wraps[0].child]
            what = f"'{name}' cannot act over '{beneath}': {member.method} computes with the base's own "
            raise AlignError(f"{what}weights, and '{beneath}' would have no effect", f"put '{name}' first, or merge()")
        seen |= {(id(place.parent), place.child): name for place in member.places}


def link(linked: list[Place], chosen: Sequence[Member]) -> None:
    """Let exactly these adapters' layers lie in a base, each around those before it.

    Args:
        linked: what lies in it, from the innermost; changed to what lies in it then.
    """
    while linked:
        linked.pop().off()
    for member in chosen:
        for place in member.places:
            place.on()
            linked.append(place)
