"""A reward model on TRL's RewardTrainer: one score per answer, learned from pairs (Bradley-Terry)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from align.data.sources import DataSource
from align.stage import Stage, StageKeys

if TYPE_CHECKING:
    from datasets import Dataset

    from align.stage import Job


class Keys(StageKeys):
    """Recipe keys of a `reward` stage."""

    eval_data: DataSource | list[DataSource] | int | float | None = Field(
        0.1, description="held-out pairs to evaluate the model on: a source, or a share or number of `data`'s rows"
    )
    center_rewards_coefficient: float | None = Field(
        0.01, ge=0, description="keeps the mean score near 0 (Eisenstein et al. 2023); null turns it off"
    )


def train(job: Job) -> dict[str, Any]:
    """Train on the pairs of the job, then evaluate on the held-out ones."""
    from trl import RewardConfig

    from align.data import tokens
    from align.trainers import reward

    assert isinstance(job.keys, Keys)
    args = job.arguments(RewardConfig, center_rewards_coefficient=job.keys.center_rewards_coefficient)

    def pairs(name: str, rows: list[dict[str, Any]]) -> Dataset:
        return job.table(name, tokens.reward(rows, job.tokenizer), len(rows))

    held = pairs("eval", job.evaluation) if job.evaluation else None
    trainer = reward.RewardTrainer(
        model=job.model,
        args=args,
        processing_class=job.tokenizer,
        train_dataset=pairs("train", job.rows),
        eval_dataset=held,
    )
    metrics: dict[str, Any] = dict(job.fit(trainer))
    if held is None:
        job.warn("no pairs were held out, so the model was not evaluated beyond its training loss")
        return metrics
    found = reward.figures(*trainer.scores(held))
    doubt = reward.doubt(found["pair_accuracy"], len(held))
    if doubt:
        job.warn(doubt)
    return metrics | found


STAGE = Stage(
    description="a reward model from pairs of better and worse answers",
    rows=frozenset({"preference"}),
    train=train,
    gives="reward",
    keys=Keys,
    arguments="RewardConfig",
    defaults={
        "full": {"learning_rate": 1e-5, "warmup_steps": 0.05},
        "adapter": {"learning_rate": 1e-4, "warmup_steps": 0.05},
    },
)
