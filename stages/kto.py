"""Kahneman-Tversky optimization on TRL's KTOTrainer: each answer alone is desirable or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from align.stage import Stage, StageKeys

if TYPE_CHECKING:
    from datasets import Dataset

    from align.job import Job


class Keys(StageKeys):
    """Recipe keys of a `kto` stage, by TRL's names."""

    beta: float = Field(0.1, gt=0, description="higher stays closer to the policy that came in")
    desirable_weight: float = Field(1.0, ge=0, description="of the chosen answers' losses")
    undesirable_weight: float = Field(1.0, ge=0, description="of the rejected answers' losses")
    loss_type: Literal["kto", "apo_zero_unpaired"] = Field(
        "kto", description="kto: holds answers against the KL of their batch; apo_zero_unpaired: against nothing"
    )

    def contradictions(self, *, method: str, trains_base: bool, quantized: bool) -> list[tuple[str, str, str]]:
        """KL is estimated from the other answers of a batch."""
        if self.loss_type != "kto" or self.training.get("per_device_train_batch_size") != 1:
            return []
        what = "the loss 'kto' estimates KL from the other answers of a batch, and a batch holds one"
        return [("training", what, "raise `per_device_train_batch_size`, or use `loss_type: apo_zero_unpaired`")]


def train(job: Job) -> dict[str, float]:
    """Train on the answers of the job's pairs."""
    from trl import KTOConfig

    from align.data import tokens
    from align.trainers.kto import KtoTrainer

    keys = job.keys
    assert isinstance(keys, Keys)
    own = keys.model_dump(include={"beta", "desirable_weight", "undesirable_weight", "loss_type"})
    args = job.arguments(KTOConfig, precompute_ref_log_probs=True, **own)

    def answers(name: str, rows: list[dict[str, Any]]) -> Dataset:
        return job.table(name, tokens.unpaired(rows, job.tokenizer, args), 2 * len(rows))

    trainer = KtoTrainer(
        model=job.model,
        args=args,
        processing_class=job.tokenizer,
        reference_file=job.dir.reference,
        train_dataset=answers("train", job.rows),
        eval_dataset=answers("eval", job.evaluation) if job.evaluation else None,
    )
    return job.fit(trainer)


STAGE = Stage(
    description="KTO on single answers, against the policy that came in",
    rows=frozenset({"preference"}),
    train=train,
    keys=Keys,
    arguments="KTOConfig",
    defaults={
        "full": {"learning_rate": 1e-6, "warmup_steps": 0.1},
        "adapter": {"learning_rate": 1e-5, "warmup_steps": 0.1},
    },
)
