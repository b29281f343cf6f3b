"""The policy that comes into each stage, before any of them has run. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.parameterization import chain
from align.recipe.pipeline import BASE
from align.recipe.plan import StagePlan
from align.run_folder.records import Adapter, BaseModelIdentity, Policy


def handed_on(stages: Sequence[StagePlan], base: BaseModelIdentity) -> Mapping[str, Policy]:
    """What each stage will hand on, by its id, and under `base` what the first begins with; nothing is on disk."""
    found = {BASE: Policy(base=base)}
    for plan in stages:
        came_in = found[plan.policy]
        kept = {layer.stage for layer in chain.after(chain.layers(came_in.adapters), plan.layer)}
        adapters = [one for one in came_in.adapters if one.name in kept]
        folder, settings = f"stages/{plan.id}/model", plan.method_keys.model_dump(mode="json")
        if plan.trains_base:
            found[plan.id] = Policy(base=base, weights=folder, adapters=adapters)
            continue
        own = Adapter(name=plan.id, path=folder, method=plan.method_keys.method, settings=settings)
        quantization = plan.method.quantization(plan.method_keys)
        changed = {"quantization": quantization, "adapters": [*adapters, own]}
        found[plan.id] = came_in.model_copy(update=changed)
    return found
