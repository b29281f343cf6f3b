"""Supervised fine-tuning on TRL's SFTTrainer: chat, prompt/completion and plain text, with a loss on answers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from align.stage import Stage, StageKeys

if TYPE_CHECKING:
    from datasets import Dataset

    from align.stage import Job


class Keys(StageKeys):
    """Recipe keys of an `sft` stage."""

    completion_only_loss: bool = Field(True, description="compute the loss on answers only; false: on prompts too")
    turns: Literal["all", "last", "each"] = Field(
        "all",
        description="which assistant turns are trained on: all; the last; or each, in a separate row that ends with "
        "it, as at inference (for templates that drop the reasoning of earlier turns)",
    )
    kl_coef: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="weight of the KL from the incoming policy to the trained one, on the trained tokens",
    )


def train(job: Job) -> dict[str, float]:
    """Train on the rows of the job."""
    from trl import SFTConfig

    from align.data import tokens
    from align.data.encode import Turns
    from align.trainers.sft import SftTrainer

    assert isinstance(job.keys, Keys)
    args = job.arguments(SFTConfig, completion_only_loss=False)
    if not args.packing:
        args.dataset_kwargs = {"skip_prepare_dataset": True}
    only = job.keys.completion_only_loss
    turns: Turns = "all" if job.keys.turns == "all" else "last"

    def table(name: str, rows: list[dict[str, Any]], groups: list[int] | None) -> Dataset:
        batches = tokens.language_modeling(rows, groups, job.tokenizer, args, completion_only=only, turns=turns)
        return job.table(name, batches, len(rows))

    trainer = SftTrainer(
        model=job.model,
        args=args,
        processing_class=job.tokenizer,
        train_dataset=table("train", job.rows, job.groups),
        eval_dataset=table("eval", job.evaluation, None) if job.evaluation else None,
    )
    if job.keys.kl_coef:
        trainer.stay_near(job.keys.kl_coef)
        job.weights["kl"] = job.keys.kl_coef
    return job.fit(trainer)


STAGE = Stage(
    description="supervised fine-tuning on answers",
    rows=frozenset({"chat", "prompt_completion", "text"}),
    train=train,
    keys=Keys,
    arguments="SFTConfig",
    defaults={
        "full": {"learning_rate": 2e-5, "warmup_steps": 0.05},
        "adapter": {"learning_rate": 2e-4, "warmup_steps": 0.03},
    },
    replays=True,
)
