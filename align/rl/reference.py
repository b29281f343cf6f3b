"""The policy that came in, as something that can be called in its trained successor's place.

TRL's own reference of a PEFT model is a copy of the tensors named `.default.` alone, or everything off: wrong for
stacks of adapters and for IA3; that of a full model is loaded again from the path in its configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from align.policy.switchboard import Switchboard
from align.rl.critic import is_critic

Kind = Literal["auto", "model"]
Pass = Callable[..., Any]


class Adapters:
    """The same model under the adapters of the policy that came in: new ones off, continued ones as they were."""

    def __init__(self, model: nn.Module, switchboard: Switchboard, names: Sequence[str]) -> None:
        self.model, self.switchboard, self.names = model, switchboard, names

    def __call__(self, **inputs: Any) -> Any:
        """As the model's own forward."""
        with self.switchboard.acting(self.names):
            return self.model(**inputs)


class Swapped:
    """The same model with the weights that it came in with: those that are trained are held twice, all others once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad and not is_critic(n)]
        self.kept = [(p, p.detach().clone()) for _, p in trained]

    def __call__(self, **inputs: Any) -> Any:
        """As the model's own forward."""
        with self._swapped():
            return self.model(**inputs)

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, kept in self.kept:
            parameter.data, kept.data = kept.data, parameter.data


class Frozen:
    """A model of its own."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.requires_grad_(False).eval()

    def __call__(self, **inputs: Any) -> Any:
        """As the model's own forward."""
        return self.model(**inputs)
