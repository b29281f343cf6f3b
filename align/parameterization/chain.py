"""What a chain of parameterizations hands on: which adapters are merged, stay, or cannot be gone on from. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.errors import AlignError
from align.parameterization import method as parameterization
from align.parameterization.method import Method
from align.parameterization.traits import ParameterizationKeys, Traits
from align.run_folder.records import Adapter


@dataclass(frozen=True)
class Layer:
    """One adapter of a policy, by the parameterization that made it."""

    method: Method
    keys: ParameterizationKeys
    stage: str

    @classmethod
    def of(cls, settings: dict[str, Any], stage: str) -> Layer:
        """From the settings of an outcome."""
        method = parameterization.load(settings["method"])
        return cls(method, method.Keys.model_validate(settings), stage)

    @property
    def traits(self) -> Traits:
        """How other stages go on from it, and it from them."""
        return self.method.traits(self.keys)

    @property
    def quantized(self) -> bool:
        """Whether it stands on a base in 4 or 8 bits."""
        return self.method.quantization(self.keys) is not None


def layers(adapters: Sequence[Adapter]) -> list[Layer]:
    """The adapters of a policy, as outcomes hold them."""
    return [Layer.of(adapter.settings, adapter.name) for adapter in adapters]


def mergeable(policy: Sequence[Layer]) -> int:
    """How many of a policy's adapters, from the first on, a stage that trains base weights can merge."""
    return next((count for count, layer in enumerate(policy) if not layer.traits.merges), len(policy))


def continues(policy: Sequence[Layer], own: Layer) -> bool:
    """Whether a stage trains the last adapter further: it was made by the same parameterization."""
    return bool(policy) and policy[-1].keys == own.keys and own.traits.continues


def after(policy: Sequence[Layer], own: Layer) -> list[Layer]:
    """The adapters of the policy that a stage hands on.

    Args:
        policy: the adapters that come in.
        own: the stage's parameterization.

    Raises:
        AlignError: an adapter that comes in can neither be merged nor stay under what this stage trains.
    """
    if own.traits.trains_base:
        kept = list(policy[mergeable(policy) :])
        _check(kept, own)
        return kept
    if continues(policy, own):
        return [*policy[:-1], own]
    _check(policy, own)
    check_top(policy, own)
    return [*policy, own]


def check_top(policy: Sequence[Layer], own: Layer) -> None:
    """Raises AlignError where a stage's adapter cannot go on those that come in."""
    methods = [layer.keys.method for layer in policy]
    before = own.keys.method in methods
    apart = before and own.traits.adjoins and methods[-1] != own.keys.method
    again = before and not own.traits.repeats
    if policy and (apart or again or not own.traits.tops):
        what = f"stage '{own.stage}' cannot train {own.keys.method} on top of the {methods[-1]} of stage "
        what += f"'{policy[-1].stage}'"
        raise AlignError(
            what, "give this stage another parameterization, such as lora, or the same one as the stage before it"
        )


def _check(kept: Sequence[Layer], own: Layer) -> None:
    for layer in kept:
        if not layer.traits.stacks:
            what = f"stage '{own.stage}' cannot continue from the {layer.keys.method} of stage '{layer.stage}' with "
            what += own.keys.method
            extra = ", without modules_to_save" if layer.traits.merges else ""
            raise AlignError(what, f"give both stages the same parameterization, or '{layer.stage}' another{extra}")


def beside(on_it: list[Adapter], more: list[Adapter]) -> bool:
    """Add the adapters of another policy to those on the model, unless one of them cannot stand on those."""
    new = [adapter for adapter in more if adapter.path not in {one.path for one in on_it}]
    for adapter in new:
        try:
            check_top(layers(on_it), Layer.of(adapter.settings, adapter.name))
        except AlignError:
            return False
    on_it += new
    return True
