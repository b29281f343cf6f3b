"""A stage as it is traced: the longest rows that it has, two updates, nothing measured. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.data.lengths import Lengths
from align.planning import depths, longest, policies
from align.planning.records import Asked
from align.planning.target import Target
from align.policy.base import replaced_tokens
from align.preflight import rows_that_fit
from align.preflight.check import Prepared, write_rows
from align.recipe.pipeline import BASE
from align.recipe.plan import Loaded, StagePlan
from align.run_folder.launch import Launch
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Policy, Reward
from align.runner import tickets

STEPS = 2  # updates: the first makes what the optimizer keeps
ROWS = 64  # at least; KTO compares rows with each other, and a rollout takes many


def every(
    loaded: Loaded,
    prepared: Prepared,
    stages: Sequence[StagePlan],
    run: RunDir,
    target: Target,
    lengths: Lengths | None,
) -> dict[str, Asked]:
    """The questions about these stages, by their ids; none where the config of the base does not say how deep it is."""
    base = prepared.base
    if base.path is None or depths.layers(base.config) is None:
        return {}
    identity = BaseModelIdentity(name=base.name, path=str(base.path), identity="planned")
    after = policies.handed_on(loaded.stages, identity)
    return {plan.id: ask(loaded, prepared, plan, after, run, target, lengths) for plan in stages}


def ask(
    loaded: Loaded,
    prepared: Prepared,
    plan: StagePlan,
    after: Mapping[str, Policy],
    run: RunDir,
    target: Target,
    lengths: Lengths | None,
) -> Asked:
    """The question about one stage.

    Args:
        after: what each stage hands on.
        run: a folder for the rows.
    """
    rows, base = prepared.rows[plan.id], after[BASE].base
    ticket = tickets.ticket_of(loaded, prepared, plan, run, base)
    per_device, accumulation = plan.global_batch
    answered = int(plan.training.get("steps_per_generation") or accumulation) if plan.program.stage.samples else 1
    mixed = mixes(plan)
    batch, most = longest.longest(rows.trained if mixed else rows.train, lengths, per_device)
    accumulated = min(accumulation, 2)
    count = max(ROWS, per_device * max(accumulated, answered) * (STEPS + 1)) * _packed(plan, most)
    train = [batch[at % len(batch)] for at in range(count)]
    beside = longest.longest(rows.replayed, lengths, per_device)[0] if ticket.replay and not mixed else []
    replay = write_rows(run, [beside[at % len(beside)] for at in range(count)]) if beside else None
    asked = {
        "policy": after[plan.policy],
        "rewards": [_reward(one, after) for one in ticket.rewards],
        "train": write_rows(run, train),
        "replay": replay,
        "replay_sources": [one.model_copy(update={"count": count}) for one in ticket.replay_sources[:1]]
        if replay
        else [],
        "replay_ratio": ticket.replay_ratio if replay else 0.0,
        "training": _training(plan, target, accumulated),
        "probes": "none",
        "inside": None,
        "evaluation": None,
        "fisher": None,
        "writing": None,
        "trackers": [],
        "prompts": [],
        "latency": False,
        "processes": 1,
        "launch": Launch(),
    }
    layers = depths.layers(prepared.base.config)
    assert layers is not None
    return Asked(
        ticket=ticket.model_copy(update=asked),
        layers=layers,
        depths=depths.of(plan, prepared.base.config),
        block=target.block,
        casts=not target.gpu,
    )


def _packed(plan: StagePlan, most: int) -> int:
    """How many rows of so many tokens a pack has room for; 1 where rows are not packed."""
    room = rows_that_fit.max_length(plan)
    return -(-room // most) if plan.training.get("packing") and room and most else 1


def mixes(plan: StagePlan) -> bool:
    """Whether replayed rows are in one batch with the stage's; one that samples answers learns them beside its own."""
    return plan.mixes and not plan.program.stage.samples


def _training(plan: StagePlan, target: Target, accumulated: int) -> dict[str, Any]:
    """The recipe's arguments, less what writes, measures, compiles or waits."""
    usual = target.arguments(plan.training)
    if not plan.layer.traits.recomputes:
        usual["gradient_checkpointing"] = False
    given = {**usual, **plan.training}
    left = (
        "eval_",
        "dataloader_",
        "torch_compile",
        "use_liger",
        "use_vllm",
        "vllm_",
        "save_",
        "logging_",
        "num_train_",
    )
    kept = {name: value for name, value in given.items() if not name.startswith(left)}
    kept.pop("tf32", None)  # of a GPU, and none of the memory
    if kept.pop("fp16", None):
        kept["bf16"] = True  # of the same size
    generations = kept.get("num_generations")
    if plan.launch.processes > 1 and isinstance(generations, int):
        kept["num_generations"] = max(2, math.gcd(generations, math.prod(plan.global_batch)))
    if plan.program.stage.samples:  # a rollout is as large as it is, however little of it is accumulated here
        kept.setdefault("steps_per_generation", plan.global_batch[1])
    return kept | {
        "max_steps": STEPS,
        "gradient_accumulation_steps": accumulated,
        "save_strategy": "no",
        "logging_steps": 1,
    }


def _reward(reward: Reward, after: Mapping[str, Policy]) -> Reward:
    """A reward model of a stage as that stage will hand it on."""
    given = after.get(reward.stage) if reward.stage else None
    return reward if given is None else reward.model_copy(update={"model": given})


def lengths_of(loaded: Loaded, prepared: Prepared) -> Lengths | None:
    """Counts the tokens of rows as the base's tokenizer makes them."""
    assert prepared.base.path is not None
    replaced = replaced_tokens(loaded.recipe.model.model_dump())
    return Lengths.of(Path(prepared.base.path), prepared.chat_template, replaced)
