"""The model folder of a stage, and the policy that goes on from it."""

from __future__ import annotations

import shutil

from pydantic import JsonValue

from align.parameterization import chain
from align.parameterization import method as methods
from align.policy import adapter_config, stack
from align.run_folder.paths import RunDir
from align.run_folder.records import Adapter, Policy
from align.stage.job import Job


def save_policy(job: Job, run: RunDir) -> Policy:
    """Write the model folder and describe the policy that goes on."""
    ticket, folder = job.ticket, job.dir.model
    shutil.rmtree(folder, ignore_errors=True)
    method = methods.load(ticket.parameterization["method"])
    keys, came_in = method.Keys.model_validate(ticket.parameterization), ticket.policy
    kept = chain.after(chain.layers(came_in.adapters), chain.Layer(method, keys, ticket.stage))
    stages = {layer.stage for layer in kept}
    adapters_kept = [adapter for adapter in came_in.adapters if adapter.name in stages]
    if method.traits(keys).trains_base:
        job.model.save_pretrained(folder, state_dict=stack.base_weights(job.model) if kept else None)
        policy = Policy(base=came_in.base, weights=run.relative(folder), adapters=adapters_kept)
    else:
        job.model.save_pretrained(folder, selected_adapters=[stack.TRAINED])
        from_hub: dict[str, JsonValue] = {}
        if came_in.base.revision and came_in.weights is None:  # loads anywhere, not only where the cache has it
            from_hub = {"base_model_name_or_path": came_in.base.name, "revision": came_in.base.revision}
        adapter_config.put_in_order(folder, job.model.peft_config[stack.TRAINED], **from_hub)
        own = Adapter(
            name=ticket.stage,
            path=run.relative(folder),
            method=ticket.parameterization["method"],
            settings=ticket.parameterization,
        )
        policy = Policy(
            base=came_in.base,
            weights=came_in.weights,
            quantization=method.quantization(keys),
            adapters=[*adapters_kept, own],
        )
    job.tokenizer.save_pretrained(folder)
    if ticket.gives == "policy":
        job.model.generation_config.save_pretrained(folder)  # with every token that ends an answer
    return policy
