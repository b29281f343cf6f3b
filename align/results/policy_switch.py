"""Several policies of one run over one loaded base: which adapters act is switched, nothing is loaded again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from align.errors import AlignError
from align.parameterization import chain
from align.parameterization.chain import beside
from align.policy import load as models
from align.policy import stack
from align.recipe.pipeline import BASE
from align.results import find
from align.run_folder.records import Adapter, Outcome, Policy, Ticket


class Switch:
    """The policies of a run that stand on the same weights as one of them, by their stages' names, and `base`.

    Args:
        folder: the run folder.
        ticket, outcome: of the stage to begin with.
    """

    def __init__(self, folder: Path, ticket: Ticket, outcome: Outcome) -> None:
        policy = outcome.policy
        assert policy is not None
        self.name, self.policies = outcome.stage, policies(folder, outcome)
        ordered = [policy, *self.policies.values()]  # its own first: the others were checked on top of them
        found = {adapter.path: adapter for one in ordered for adapter in one.adapters}
        self._called = {path: f"stage_{number}" for number, path in enumerate(found)}
        dtype = models.dtype_of(ticket.model.get("dtype", "auto"), trains_base=policy.weights is not None)
        weights = str(folder / policy.weights) if policy.weights else policy.base.path
        base = models.load_weights(weights, ticket.model, dtype, policy.quantization)
        renamed = [adapter.model_copy(update={"name": str(number)}) for number, adapter in enumerate(found.values())]
        self.model: Any = stack.put(base, renamed, folder).eval()
        self.use(self.name)

    @property
    def names(self) -> list[str]:
        """What can be switched to."""
        return list(self.policies)

    def use(self, name: str) -> float:
        """Let another policy act; returns the wall seconds that the switch took.

        Raises:
            AlignError: there is none of that name here.
        """
        if name not in self.policies:
            what = f"there is no '{name}' on these weights"
            raise AlignError(what, f"choose one of: {', '.join(self.policies)}")
        began = time.perf_counter()
        stack.activate(self.model, [self._called[adapter.path] for adapter in self.policies[name].adapters])
        self.name = name
        return time.perf_counter() - began


def policies(folder: Path, outcome: Outcome) -> dict[str, Policy]:
    """The policies of a run on the same weights; what cannot be switched off, as learnt prompts, stays alone."""
    own = outcome.policy
    assert own is not None
    if not _switchable(own.adapters):
        return {outcome.stage: own}
    found = {} if own.weights else {BASE: own.model_copy(update={"adapters": []})}
    on_it = list(own.adapters)
    for id, other in find.finished(folder).items():
        policy = other.policy
        if policy is None or (policy.weights, policy.quantization) != (own.weights, own.quantization):
            continue
        if _switchable(policy.adapters) and beside(on_it, policy.adapters):
            found[id] = policy
    return found


def _switchable(found: list[Adapter]) -> bool:
    return all(layer.traits.stacks and layer.traits.switches for layer in chain.layers(found))
