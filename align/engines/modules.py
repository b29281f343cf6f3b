"""What the modules of a model are before an engine changes their classes and hooks them, and how they get it back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


class Modules:
    """The classes, hooks and attributes of all modules of a model. torch has a way to shard a model, and none back.

    Args:
        model: as it is now; its weights are not held.
    """

    def __init__(self, model: nn.Module) -> None:
        self.before = [(module, type(module), set(vars(module)), dict(_hooks(module))) for module in model.modules()]

    def restore(self) -> None:
        """Give each module its class and its hooks again, and take away what it has been given since: a mark by which
        transformers would have all processes generate together, what holds the shards, methods that were wrapped."""
        for module, kind, names, hooks in self.before:
            module.__class__ = kind
            for name, kept in hooks.items():
                held = vars(module)[name]
                held.clear()
                held.update(kept)
            for name in vars(module).keys() - names:
                del vars(module)[name]


def _hooks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every collection of hooks that a module has, by the name of it."""
    for name, value in vars(module).items():
        if "_hooks" in name and hasattr(value, "items"):
            yield name, dict(value)
