"""Stages that go on from one policy, each its own way: what is compared when all are done. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from align.recipe.pipeline import BASE
from align.recipe.plan import Loaded
from align.run_folder import files, handed_on, reading
from align.run_folder.comparison import ComparisonRequest
from align.run_folder.paths import RunDir
from align.run_folder.records import Ticket


def comparison(loaded: Loaded, run: RunDir, tickets: Mapping[str, Ticket]) -> ComparisonRequest | None:
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
    ids = [parent, *(plan.id for plan in giving if plan.policy == parent)]
    outcomes = {id: outcome for id in ids if (outcome := reading.outcome(run.stage(id))) is not None}
    policies = {id: policy for id in outcomes if (policy := handed_on.policy(run, id)) is not None}
    ticket, reward = tickets[scored.id], tickets[scored.id].rewards[0].model_copy()
    if len(policies) < len(ids):
        return None
    if reward.stage is not None:
        judge = reading.outcome(run.stage(reward.stage))
        if judge is None:
            return None
        reward.model = judge.reward
    asking = tickets[reward.stage] if reward.stage is not None else ticket
    found = ComparisonRequest(
        parent=parent,
        policies=policies,
        reward=reward,
        prompts=asking.evaluation or ticket.train,
        of=asking.stage if asking.evaluation else ticket.stage,
        held_out=asking.evaluation is not None,
        model=ticket.model,
        chat_template=ticket.chat_template,
        training={name: ticket.training.get(name) for name in ("max_completion_length", "bf16")},
        seed=ticket.seed,
    )
    whole = {id: reading.outcome(handed_on.folder(run.stage(id))) or outcome for id, outcome in outcomes.items()}
    artifacts = {id: outcome.artifacts for id, outcome in whole.items()}
    found.key = files.digest([found.model_dump(mode="json"), artifacts])
    return found
