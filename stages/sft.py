"""Supervised fine-tuning on TRL's SFTTrainer: chat, prompt/completion and plain text, with a loss on answers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from align.stage import Stage, StageKeys
from align.stage.rewrite_keys import Rewrite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from align.data.formats import Example
    from align.stage import Job
    from align.stage.keys import Setting


class Keys(StageKeys):
    """Recipe keys of an `sft` stage."""

    later: ClassVar[frozenset[str]] = frozenset({"mask_above_perplexity", "mask_at_random"})
    completion_only_loss: bool = Field(True, description="compute the loss on answers only; false: on prompts too")
    turns: Literal["all", "last", "each"] = Field(
        "all",
        description="which assistant turns are trained on: all; the last; or each, in a separate row that ends with "
        "it, as at inference (for templates that drop the reasoning of earlier turns)",
    )
    mask_above_perplexity: float | None = Field(
        None,
        gt=1,
        allow_inf_nan=False,
        description="leave tokens of the answers untrained that the starting policy finds less probable than 1 / this; "
        "2.5 is usual, and 1 would mask everything",
    )
    mask_at_random: bool = Field(
        False,
        description="a control for `mask_above_perplexity`: mask as many tokens of each row, but drawn at random",
    )
    kl_coef: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="weight of the KL from the incoming policy to the trained one, on the trained tokens",
    )
    rewrite: Rewrite | None = Field(
        None, description="answers that the policy samples itself replace the data's where they are accepted"
    )

    def contradictions(self, setting: Setting) -> list[tuple[str, str, str]]:
        """A control of nothing, a policy that reads a prompt of which nothing is learnt yet, a rewriting that accepts
        by nothing."""
        found = super().contradictions(setting)
        if self.mask_above_perplexity is None and self.mask_at_random:
            what = "`mask_at_random` has no effect without `mask_above_perplexity`, which says how many tokens to mask"
            found.append(("mask_at_random", what, "write `mask_above_perplexity: 2.5`, or leave it out"))
        if self.mask_above_perplexity is not None and not setting.own.traits.inside:
            method = setting.own.keys.method
            what = f"`mask_above_perplexity` cannot go with {method}: its new prompt changes what the policy expects"
            remedy = "choose a method that acts in the layers, such as lora"
            found.append(("mask_above_perplexity", what, remedy))
        return [*found, *(self.rewrite.faults() if self.rewrite else [])]

    def refusals(self, rows: Sequence[Example]) -> list[tuple[str, str, str]]:
        """Rows that ask nothing cannot be answered."""
        return self.rewrite.faults(rows) if self.rewrite else []


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

    train_rows = table("train", job.rows, job.groups)
    if job.keys.mask_above_perplexity is not None:
        from align.trainers import token_mask

        limit = token_mask.Limit(job.keys.mask_above_perplexity, job.keys.mask_at_random, job.ticket.seed)
        train_rows = token_mask.masked(job, train_rows, limit, args)
    trainer = SftTrainer(
        model=job.model,
        args=args,
        processing_class=job.tokenizer,
        train_dataset=train_rows,
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
