"""Stages that go on from one policy, each its own way: what is compared when all are done. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from align import rundir
from align.pipeline import BASE
from align.recipe import Loaded
from align.rundir import RunDir
from align.stage import Outcome, Policy, Reward, Rows, Ticket

PROMPTS = 200


class Comparison(BaseModel):
    """What the child is asked to compare.

    Attributes:
        parent: the stage that all go on from.
        policies: by stage, the parent's among them.
        reward: scores the sampled answers.
        prompts: rows that have a prompt, the first of which are asked; `of` is the stage that they come from.
        key: hash of all this: what was compared already is not compared again.
    """

    format: int = 1
    parent: str
    policies: dict[str, Policy]
    reward: Reward
    prompts: Rows
    of: str
    held_out: bool
    model: dict[str, Any]
    chat_template: str | None
    training: dict[str, Any]
    seed: int
    key: str = ""


def comparison(loaded: Loaded, run: RunDir, tickets: Mapping[str, Ticket]) -> Comparison | None:
    """The first branching of a run whose stages are done and whose recipe has a reward; None without one."""
    scored = next((plan for plan in loaded.stages if tickets[plan.id].rewards), None)
    if scored is None:
        return None
    giving = [plan for plan in loaded.stages if plan.program.stage.gives == "policy"]
    parent = next(
        (p.policy for p in giving if p.policy != BASE and sum(o.policy == p.policy for o in giving) > 1), None
    )
    if parent is None:
        return None
    outcomes = {
        id: rundir.read_json(run.stage(id).outcome) for id in [parent, *(p.id for p in giving if p.policy == parent)]
    }
    policies = {id: Outcome.model_validate(raw).policy for id, raw in outcomes.items() if raw is not None}
    ticket, reward = tickets[scored.id], tickets[scored.id].rewards[0].model_copy()
    if len(policies) < len(outcomes) or not all(policies.values()):
        return None
    if reward.stage is not None:
        raw = rundir.read_json(run.stage(reward.stage).outcome)
        if raw is None:
            return None
        reward.model = Outcome.model_validate(raw).reward
    judge = tickets[reward.stage] if reward.stage is not None else ticket
    found = Comparison(
        parent=parent,
        policies={id: policy for id, policy in policies.items() if policy is not None},
        reward=reward,
        prompts=judge.evaluation or ticket.train,
        of=judge.stage if judge.evaluation else ticket.stage,
        held_out=judge.evaluation is not None,
        model=ticket.model,
        chat_template=ticket.chat_template,
        training={name: ticket.training.get(name) for name in ("max_completion_length", "bf16")},
        seed=ticket.seed,
    )
    artifacts = {id: raw["artifacts"] for id, raw in outcomes.items()}
    found.key = rundir.digest([found.model_dump(mode="json"), artifacts])
    return found
