"""Rewards of sampled answers, and of the data's own, where they decide which of them a stage learns."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.rl import scoring
from align.rl.scoring import Question
from align.run_folder.paths import RunDir
from align.run_folder.records import Reward
from align.stage.job import Job
from align.written.rewriting import Ask

SIZE = 32  # answers that a reward model scores at once

Scores = tuple[list[float | None], float | None]  # of the samples, and of the data's answer


def score(
    run: RunDir, job: Job, asks: Sequence[Ask], samples: Sequence[Sequence[str | None]], *, own: bool
) -> list[Scores]:
    """The weighted sums of the ticket's rewards, for the samples of each prompt and, with `own`, the data's answer."""
    answers = [[*texts, ask.answer if own else None] for ask, texts in zip(asks, samples, strict=True)]
    rows = [ask.answered(text) for ask, texts in zip(asks, answers, strict=True) for text in texts if text is not None]
    asked = _question(rows, TextTokenizer.of(job.tokenizer))
    sums: list[float | None] = [None] * len(rows)
    for reward in job.ticket.rewards:
        for at, one in enumerate(_by(reward, run, job, asked)):
            if one is not None:
                sums[at] = (sums[at] or 0.0) + reward.weight * one
        gc.collect()  # the reward model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    found = iter(sums)
    scored = [[next(found) if text is not None else None for text in texts] for texts in answers]
    return [(scores[:-1], scores[-1]) for scores in scored]


def _question(rows: Sequence[dict[str, Any]], tokenizer: TextTokenizer) -> Question:
    """Rows as rewards are asked: the tokens of an answer with its end."""
    encoded = list(encode.encoded(rows, tokenizer))
    return Question(
        prompts=[row["prompt"] for row in rows],
        completions=[row["completion"] for row in rows],
        prompt_ids=[row.ids[: row.first] for row in encoded],
        completion_ids=[row.ids[row.first : row.last] for row in encoded],
    )


def _by(reward: Reward, run: RunDir, job: Job, asked: Question) -> Sequence[float | None]:
    if not asked.prompts:
        return []
    if reward.kind == "function":
        return scoring.Function(reward)(asked)
    tokenizer = job.tokenizer
    ends = [one for one in (tokenizer.eos_token_id, *TextTokenizer.of(tokenizer).ends) if one is not None]
    model = scoring.own_model(reward, job.ticket.model, run.root, tokenizer, list(dict.fromkeys(ends)), SIZE)
    return model(asked)
