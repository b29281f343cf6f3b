"""GRPO: each answer is judged against the mean and spread of the answers to the same prompt; no critic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from align.rewards import RewardedKeys
from align.stage import Stage, Ticket

if TYPE_CHECKING:
    from align.job import Job


class Keys(RewardedKeys):
    """Recipe keys of a `grpo` stage, by TRL's names."""

    beta: float = Field(0.0, ge=0, description="KL coefficient, of a penalty in every token's loss; 0: no reference")


def train(job: Job) -> dict[str, Any]:
    """Train against the ticket's rewards."""
    from trl import GRPOConfig

    from align.rl import make, recorder
    from align.trainers.grpo import GrpoTrainer

    keys = job.keys
    assert isinstance(keys, Keys)
    args = job.arguments(GRPOConfig, disable_dropout=True, beta=keys.beta)
    trainer = GrpoTrainer(
        job=job, model=job.model, args=args, processing_class=job.tokenizer, train_dataset=make.prompts(job)
    )
    with trainer.learning():
        metrics: dict[str, Any] = dict(job.fit(trainer))
    return metrics | recorder.figures(trainer.finish())


def beneath(ticket: Ticket, model: Any, run: Path) -> Any:
    """Put the adapters of the reference and of the reward models under the policy's own."""
    from align.rl import shared

    return shared.put(ticket, model, run)


STAGE = Stage(
    description="GRPO against a reward: answers to one prompt are a group",
    rows=frozenset({"prompt", "chat", "prompt_completion", "preference"}),
    train=train,
    keys=Keys,
    arguments="GRPOConfig",
    defaults={
        "all": {
            "num_generations": 8,
            "steps_per_generation": 4,
            "max_completion_length": 128,
            "lr_scheduler_type": "constant",
        },
        "full": {"learning_rate": 1e-6},
        "adapter": {"learning_rate": 1e-5},
    },
    evaluates=False,
    owned={
        "reward_weights": "write the weights in `reward`",
        "disable_dropout": "dropout is off here: log-probabilities would differ between two passes; leave it out",
        "neftune_noise_alpha": "noise would make two passes differ; leave it out",
        "use_transformers_continuous_batching": "it rounds the trained weights to bfloat16; leave it out",
        "num_generations_eval": "nothing is evaluated here; leave it out",
        "eval_strategy": "nothing is evaluated here; leave it out",
        "generation_batch_size": "use `steps_per_generation`",
    },
    beneath=beneath,
)
