"""How far a stage's policy is from the base: KL on the prompts of the task, and how far the weights moved."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from align.forgetting import kl
from align.forgetting.bench import Bench
from align.forgetting.distances import Drift, TaskKl
from align.forgetting.drift import drift
from align.parameterization import chain
from align.policy import load as models
from align.policy.memory import free_memory
from align.policy.switchboard import switched_off
from align.policy.unwrapped import unwrapped
from align.run_folder import files, reading
from align.run_folder.stage_dir import StageDir
from align.stage.job import Job
from align.worker.handover import Builder

ROOM = 1.2  # free memory / size of the policy that the base is loaded beside it with

MERGED_NOTE = (
    "the base was in 4 or 8 bits before its weights were trained, so what rounding to those bits changed is counted too"
)


def measure(bench: Bench, job: Job, builder: Builder) -> None:
    """Write task_kl.json and drift.json of a stage.

    Args:
        bench: the policy, as it is measured.
    """
    files.write_json(job.dir.task_kl, task_kl(bench, job, builder).written())
    trained = builder.trains_base or job.ticket.policy.weights is not None
    base = Path(job.ticket.policy.base.path) if trained else None
    files.write_json(job.dir.drift, drift(bench.model, base, _note(job, builder) if trained else "").written())


def task_kl(bench: Bench, job: Job, builder: Builder) -> TaskKl:
    """The KL of a policy to the base on the prompts of the task."""
    task = [row for row, group in zip(job.rows, job.groups, strict=True) if group == 0]
    rows, which = (job.evaluation, "evaluation") if job.evaluation else (task, "training")
    context = getattr(bench.model.config.get_text_config(), "max_position_embeddings", None)
    asked = kl.choose(rows, job.tokenizer, context, job.ticket.seed)
    if not asked.prompts:
        return TaskKl(undefined=f"no prompt of the {which} data has at most {kl.LONGEST:,} tokens")
    count = len(asked.prompts)
    prompts = f"{count} prompt{'s' if count > 1 else ''} of the {which} data"
    if _switches(job, builder):
        return kl.measure(bench, lambda: beneath(bench), asked, prompts, job.ticket.seed)
    if not _has_room(bench.model):
        return TaskKl(undefined="there is too little free memory to load the base beside the policy")
    path = job.ticket.policy.base.path
    base = replace(bench, model=models.load_weights(path, job.ticket.model, builder.dtype, builder.quantization))
    found = kl.measure(bench, lambda: nullcontext(base), asked, prompts, job.ticket.seed)
    base.model = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def _switches(job: Job, builder: Builder) -> bool:
    """Whether the policy is the base once its adapters are off: no stage trained weights of the base itself."""
    own = chain.Layer(builder.method, builder.keys, job.ticket.stage)
    acting = chain.after(builder.layers, own)
    return (
        not builder.trains_base and job.ticket.policy.weights is None and all(layer.traits.switches for layer in acting)
    )


@contextmanager
def beneath(bench: Bench) -> Iterator[Bench]:
    """The base of a policy that is nothing but adapters on it: the same weights, not a second copy."""
    base = unwrapped(bench.model)
    with switched_off(base):
        yield replace(bench, model=base)


def _has_room(policy: Any) -> bool:
    """Whether the base fits beside the policy. Where weights were trained it took more than that to train them: their
    gradients and Adam's two moments, which are gone."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in policy.parameters())
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else free_memory()
    return bool(free > ROOM * size)


def _note(job: Job, builder: Builder) -> str:
    """What else than training is in the difference to the base's files."""
    policy = job.ticket.policy
    if policy.quantization or builder.quantization:
        return MERGED_NOTE
    if policy.weights is None:
        return ""
    before = reading.whole(StageDir((job.run.root / policy.weights).parent).drift, Drift)
    return before.note if before else ""
