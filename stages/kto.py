"""Kahneman-Tversky optimization on TRL's KTOTrainer: single answers, desirable or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from align.data.formats import Example
from align.stage import ReplayingKeys, Setting, Stage

if TYPE_CHECKING:
    from datasets import Dataset

    from align.stage import Job


BALANCED = (1.0, 4 / 3)
"""TRL's documentation of KTO: the range in which (desirable_weight x desirable) / (undesirable_weight x undesirable)
should lie."""


class Keys(ReplayingKeys):
    """Recipe keys of a `kto` stage, by TRL's names."""

    beta: float = Field(0.1, gt=0, description="higher values stay closer to the starting policy")
    desirable_weight: float = Field(1.0, ge=0, description="weight of the losses of desirable answers")
    undesirable_weight: float = Field(1.0, ge=0, description="weight of the losses of undesirable answers")
    loss_type: Literal["kto", "apo_zero_unpaired"] = Field(
        "kto", description="kto: an estimate of the KL is the baseline; apo_zero_unpaired: no baseline"
    )

    def contradictions(self, setting: Setting) -> list[tuple[str, str, str]]:
        """KL is estimated from the other answers of a batch."""
        found = super().contradictions(setting)
        if self.loss_type != "kto" or self.training.get("per_device_train_batch_size") != 1:
            return found
        what = "the loss 'kto' estimates the KL from the other answers of a batch, but a batch has only one"
        remedy = "raise `per_device_train_batch_size`, or use `loss_type: apo_zero_unpaired`"
        return [*found, ("training", what, remedy)]

    def refusals(self, rows: Sequence[Example]) -> list[tuple[str, str, str]]:
        """KL is estimated from answers to other prompts."""
        if (
            self.loss_type != "kto"
            or not rows
            or any(row.value.get("prompt") != rows[0].value.get("prompt") for row in rows)
        ):
            return []
        what = "all answers have the same prompt, but the loss 'kto' estimates the KL from answers to other prompts"
        return [("data", what, "use `loss_type: apo_zero_unpaired`, or data with more prompts")]

    def notes(self, rows: Sequence[Example]) -> list[str]:
        """Whether desirable and undesirable answers weigh about the same."""
        good, bad = answers(rows)
        up, down = good * self.desirable_weight, bad * self.undesirable_weight
        counted = f"{good:,} desirable answers with weight {self.desirable_weight:g} and {bad:,} undesirable "
        counted += f"ones with weight {self.undesirable_weight:g}"
        if not up or not down:
            return (
                [f"{counted}: with only one kind, KTO either only raises or only lowers probabilities"]
                if good + bad
                else []
            )
        ratio = up / down
        if BALANCED[0] <= ratio <= BALANCED[1]:
            return []
        key, least, most = "desirable_weight", down / good, down / good * BALANCED[1]
        if ratio > BALANCED[1]:
            key, least, most = "undesirable_weight", up / bad / BALANCED[1], up / bad
        least, most = math.ceil(round(100 * least, 6)) / 100, math.floor(round(100 * most, 6)) / 100
        return [f"{counted}: {ratio:.2f} to 1; TRL recommends 1 to 1.33: set {key} between {least:g} and {most:g}"]


def answers(rows: Sequence[Example]) -> tuple[int, int]:
    """How many desirable and undesirable answers rows have; a pair has one of each."""
    pairs = sum(row.kind == "preference" for row in rows)
    desirable = sum(bool(row.value["label"]) for row in rows if row.kind == "unpaired")
    return pairs + desirable, len(rows) - desirable


def train(job: Job) -> dict[str, float]:
    """Train on the answers of the job's rows: of pairs both, and those that have a label."""
    from trl import KTOConfig

    from align.data import tokens
    from align.trainers import replay_term
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
    replay_term.add(job, trainer, keys.ptx_coef)
    return job.fit(trainer)


STAGE = Stage(
    description="KTO on single answers, against the starting policy",
    rows=frozenset({"preference", "unpaired"}),
    train=train,
    keys=Keys,
    arguments="KTOConfig",
    defaults={
        "full": {"learning_rate": 1e-6, "warmup_steps": 0.1},
        "adapter": {"learning_rate": 1e-5, "warmup_steps": 0.1},
    },
    replays="term",
)
