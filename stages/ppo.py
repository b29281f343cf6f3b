"""PPO with a learned critic and a KL penalty that is steered to a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.rl import defaults
from align.rl.ppo_keys import PpoKeys
from align.stage import Stage, Ticket

if TYPE_CHECKING:
    from align.stage import Job


def train(job: Job) -> dict[str, Any]:
    """Train against the ticket's rewards."""
    from align.rl import parts
    from align.trainers.ppo import PPOConfig, PpoTrainer, figures

    keys = job.keys
    assert isinstance(keys, PpoKeys)
    args = job.arguments(
        PPOConfig, disable_dropout=True, beta=0.0
    )  # RLOO's own KL is off; the penalty is in the rewards
    kind = keys.critic_of(trains_base=parts.trains_base(job.ticket))
    trainer = PpoTrainer(
        job=job,
        keys=keys,
        kind=kind,
        replay=parts.replay(job, args),
        model=job.model,
        args=args,
        processing_class=job.tokenizer,
        train_dataset=parts.prompts(job),
    )
    critic = parts.critic(job, trainer.lm, kind)
    with trainer.learning(critic, parts.own_reference(job) if keys.reference == "model" else None):
        metrics: dict[str, Any] = dict(job.fit(trainer))
        parts.keep_critic(job)
    return metrics | figures(trainer.finish(), keys.target)


def preload(ticket: Ticket, model: Any, run: Path) -> Any:
    """Add the adapters of the reference, the reward models and the critic beneath the policy's own."""
    from align.rl import shared_base

    keys = PpoKeys.model_validate(ticket.keys)
    return shared_base.put(ticket, model, run, value=keys.critic_of(trains_base=False) == "adapter")


STAGE = Stage(
    description="PPO against a reward, with a learned critic and KL control",
    rows=defaults.ROWS,
    samples=True,
    train=train,
    keys=PpoKeys,
    arguments="RLOOConfig",
    defaults=defaults.defaults(num_generations=1, num_iterations=4),
    replays=True,
    evaluates=False,
    reserved=defaults.RESERVED
    | {
        "beta": "use `kl.coef`",
        "normalize_advantages": "use `whiten_advantages`",
        "mask_truncated_completions": "use `missing_eos_penalty`",
    },
    preload=preload,
)
