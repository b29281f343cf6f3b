"""Which adapters act: switched for one pass, without PEFT's rewriting of which weights train.

PEFT's `set_adapter` and `disable_adapter` set `requires_grad` of every adapter they touch (peft #2759); here a layer is
only told which of its adapters to use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


class Switchboard:
    """The layers of a model's adapters.

    Attributes:
        now: the names of those that act, as last told.
    """

    def __init__(self, model: nn.Module, now: Sequence[str]) -> None:
        self.layers = _layers(model)
        self.now: tuple[str, ...] = ()
        self.use(now)

    def use(self, names: Sequence[str]) -> None:
        """Let these adapters act from now on, each in the layers that have it."""
        _tell(self.layers, names)
        self.now = tuple(names)

    def train(self, name: str) -> None:
        """Let the weights of an adapter be trained; not what belongs to it besides, as the ranks of AdaLoRA."""
        for layer in self.layers:
            for kind in getattr(layer, "adapter_layer_names", ()):
                held = getattr(layer, kind)
                if name in held:
                    held[name].requires_grad_(True)

    @contextmanager
    def acting(self, names: Sequence[str] | None) -> Iterator[None]:
        """Let these adapters act within; None leaves those that do."""
        before = self.now
        if names is None or tuple(names) == before:
            yield
            return
        self.use(names)
        try:
            yield
        finally:  # torch's checkpointing leaves a recomputation by an exception
            self.use(before)

    def remembered(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For `torch.utils.checkpoint`: a recomputation runs under the adapters of its own forward (peft #2832)."""
        return nullcontext(), self.acting(self.now)


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within, no adapter of the model acts; afterwards those do again that did before, each in its own layers."""
    with only(model, ()):
        yield


@contextmanager
def only(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within, these adapters act and no other; afterwards those do again that did before, each in its own layers."""
    layers = _layers(model)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    _tell(layers, names)
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def acting(layer: Any) -> list[str]:
    """The adapters that act in a layer of theirs, in order."""
    own = layer._get_available_adapters()
    return [] if layer.disable_adapters else [name for name in layer.active_adapters if name in own]


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def _tell(layers: Sequence[Any], names: Sequence[str]) -> None:
    """Let these adapters act in the layers that have them, and no other."""
    for layer in layers:
        if isinstance(layer, BaseTunerLayer):
            own = layer._get_available_adapters()
            layer._active_adapter = [name for name in names if name in own]
        else:  # a module that an adapter replaces whole
            chosen = [name for name in names if name in layer._adapters]
            layer._disable_adapters = not chosen
            layer._active_adapter = chosen


@contextmanager
def checkpointing(model: Any, switchboard: Switchboard) -> Iterator[None]:
    """Within, gradient checkpointing of a model recomputes each layer under the adapters of its forward."""
    plain: Callable[..., Any] = model.gradient_checkpointing_enable

    def enable(gradient_checkpointing_kwargs: dict[str, Any] | None = None, **rest: Any) -> Any:
        chosen = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        return plain(gradient_checkpointing_kwargs=chosen | {"context_fn": switchboard.remembered}, **rest)

    model.gradient_checkpointing_enable = enable
    try:
        yield
    finally:
        del model.gradient_checkpointing_enable
