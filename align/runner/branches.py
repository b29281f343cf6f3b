"""Stages that go on from one policy, each its own way: what is compared when all are done. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from align.recipe.pipeline import BASE
from align.recipe.plan import Loaded
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Comparison, Outcome, Ticket


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
        id: files.read_json(run.stage(id).outcome) for id in [parent, *(p.id for p in giving if p.policy == parent)]
    }
    policies = {id: Outcome.model_validate(raw).policy for id, raw in outcomes.items() if raw is not None}
    ticket, reward = tickets[scored.id], tickets[scored.id].rewards[0].model_copy()
    if len(policies) < len(outcomes) or not all(policies.values()):
        return None
    if reward.stage is not None:
        raw = files.read_json(run.stage(reward.stage).outcome)
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
    found.key = files.digest([found.model_dump(mode="json"), artifacts])
    return found
