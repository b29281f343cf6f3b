"""GRPO: each answer is compared with the mean and spread of the answers to the same prompt; no critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from align.rl import defaults
from align.stage import ReplayingKeys, RewardedKeys, Stage

if TYPE_CHECKING:
    from align.stage import Job


class Keys(ReplayingKeys, RewardedKeys):
    """Recipe keys of a `grpo` stage, by TRL's names."""

    beta: float = Field(0.0, ge=0, description="coefficient of the KL penalty in each token's loss; 0: no reference")

    def splits(self, training: dict[str, Any]) -> bool:
        """`bnpo` takes the mean over the tokens of a pass."""
        return bool(training.get("loss_type") != "bnpo")


def train(job: Job) -> dict[str, Any]:
    """Train against the ticket's rewards."""
    from trl import GRPOConfig

    from align.rl import parts, recorder
    from align.trainers import replay_term
    from align.trainers.grpo import GrpoTrainer

    keys = job.keys
    assert isinstance(keys, Keys)
    args = job.arguments(GRPOConfig, disable_dropout=True, beta=keys.beta)
    trainer = GrpoTrainer(
        job=job, model=job.model, args=args, processing_class=job.tokenizer, train_dataset=parts.prompts(job)
    )
    replay_term.add(job, trainer, keys.ptx_coef)
    with trainer.learning():
        metrics: dict[str, Any] = dict(job.fit(trainer))
    return metrics | recorder.figures(trainer.finish())


STAGE = Stage(
    description="GRPO against a reward: answers to the same prompt form a group",
    rows=defaults.ROWS,
    samples=True,
    train=train,
    keys=Keys,
    arguments="GRPOConfig",
    defaults=defaults.defaults(num_generations=8),
    replays="term",
    evaluates=False,
    reserved=defaults.RESERVED,
    preload=defaults.preload,
)
