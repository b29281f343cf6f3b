"""A custom stage: supervised fine-tuning on the chosen answers of preference data.

A common first step before DPO, or a baseline for DPO. `chosen_answers.yaml` runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from align.stage import Stage, StageKeys

if TYPE_CHECKING:
    from datasets import Dataset

    from align.stage import Job


class Keys(StageKeys):
    """The recipe keys of this stage, in addition to those that every stage has."""

    max_words: int | None = Field(None, ge=1, description="leave out pairs whose chosen answer is longer than this")


def train(job: Job) -> dict[str, float]:
    """Train on the chosen answers; replayed rows are used as they are."""
    from trl import SFTConfig  # heavy imports go inside: `align check` loads this file too

    from align.data import tokens
    from align.errors import AlignError
    from align.trainers.sft import SftTrainer

    assert isinstance(job.keys, Keys)
    limit = job.keys.max_words
    kept = [i for i, row in enumerate(job.rows) if limit is None or words(row) <= limit]
    if not any(job.groups[i] == 0 for i in kept):  # 0: a row of the task, 1: a replayed one
        what = f"every chosen answer of stage '{job.ticket.stage}' has more than {limit} words"
        raise AlignError(what, "raise `max_words`")
    rows, groups = [as_example(job.rows[i]) for i in kept], [job.groups[i] for i in kept]
    held = [as_example(row) for row in job.evaluation]
    args = job.arguments(SFTConfig, dataset_kwargs={"skip_prepare_dataset": True})

    def tokenized(rows: list[dict[str, Any]], groups: list[int] | None = None) -> Dataset:
        return job.dataset(tokens.language_modeling(rows, groups, job.tokenizer, args, completion_only=True))

    trainer = SftTrainer(
        model=job.model,
        args=args,
        processing_class=job.tokenizer,
        train_dataset=tokenized(rows, groups),
        eval_dataset=tokenized(held) if held else None,
    )
    return job.fit(trainer)


def as_example(row: dict[str, Any]) -> dict[str, Any]:
    """A pair as a prompt with its chosen answer; any other row as it is."""
    return {"prompt": row["prompt"], "completion": row["chosen"]} if "chosen" in row else row


def words(row: dict[str, Any]) -> int:
    """Words of the chosen answer, which is a string or a list of messages; 0 for a row that is not a pair."""
    answer = row.get("chosen", "")
    texts = [answer] if isinstance(answer, str) else [message["content"] for message in answer]
    return sum(len(text.split()) for text in texts)


STAGE = Stage(
    description="supervised fine-tuning on the chosen answers of pairs",
    rows=frozenset({"preference", "chat", "text"}),  # pairs as data; chats and texts as replay
    train=train,
    keys=Keys,
    arguments="SFTConfig",
    defaults={"full": {"learning_rate": 2e-5}, "adapter": {"learning_rate": 2e-4}},
    replays=True,
)
