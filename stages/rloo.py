"""RLOO: each answer is compared with the others to the same prompt; no critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from align.rl import defaults
from align.stage import ReplayingKeys, RewardedKeys, Stage

if TYPE_CHECKING:
    from align.stage import Job


class Keys(ReplayingKeys, RewardedKeys):
    """Recipe keys of an `rloo` stage, by TRL's names."""

    beta: float = Field(
        0.05, ge=0, description="coefficient of the KL penalty in each answer's reward; 0: no reference"
    )


def train(job: Job) -> dict[str, Any]:
    """Train against the ticket's rewards."""
    from trl import RLOOConfig

    from align.rl import parts, recorder
    from align.trainers import replay_term
    from align.trainers.rloo import RlooTrainer

    keys = job.keys
    assert isinstance(keys, Keys)
    args = job.arguments(RLOOConfig, disable_dropout=True, beta=keys.beta)
    trainer = RlooTrainer(
        job=job, model=job.model, args=args, processing_class=job.tokenizer, train_dataset=parts.prompts(job)
    )
    replay_term.add(job, trainer, keys.ptx_coef)
    with trainer.learning():
        metrics: dict[str, Any] = dict(job.fit(trainer))
    return metrics | recorder.figures(trainer.finish())


STAGE = Stage(
    description="RLOO against a reward: the other answers to the prompt are the baseline",
    rows=defaults.ROWS,
    samples=True,
    train=train,
    keys=Keys,
    arguments="RLOOConfig",
    defaults=defaults.defaults(num_generations=2),
    replays="term",
    evaluates=False,
    reserved=defaults.RESERVED,
    preload=defaults.preload,
)
