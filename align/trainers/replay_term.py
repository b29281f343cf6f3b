"""Replayed rows as a term in the loss of DPO, KTO, RLOO and GRPO: their text is learnt beside the stage's own rows, as
in PPO-ptx (Ouyang et al. 2022, arXiv 2203.02155, eq. 2).

The rows beside an update, and the number of tokens that their loss is a mean over, follow from the number of the update
alone. Micro-batches and processes share them out, so that neither is in the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from align.data import encode, replay
from align.data.replay import Beside, Source
from align.data.tokenizer import TextTokenizer
from align.rl import scoring
from align.rl.ptx import IGNORE, padded, rows_of_update
from align.trainers.base import BaseTrainer
from align.trainers.online import Online
from align.trainers.terms import Term

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.stage.job import Job

NAME = "ptx"


class ReplayTerm:
    """The language-model loss on the rows that stand beside an update.

    Args:
        sources: the rows.
        order: which of them stand beside which update.
        trainer: in whose loss the term is.
    """

    def __init__(
        self, sources: Sequence[Source], order: Beside, tokenizer: PreTrainedTokenizerBase, trainer: BaseTrainer
    ) -> None:
        self.sources, self.order, self.trainer = sources, order, trainer
        self.reader, self.pad = TextTokenizer.of(tokenizer), scoring.padding(tokenizer)
        self.update, self.part = -1, 0  # the update under way, and its micro-batches so far
        self.rows: list[tuple[list[int], list[int]]] = []  # beside that update: token ids, and those that are learnt

    def loss(self, model: nn.Module) -> torch.Tensor:
        """This micro-batch's part: the mean over micro-batches and processes is the mean over all tokens that the rows
        of the update are to teach. 0 where it has none of the rows."""
        trainer = self.trainer
        if trainer.state.global_step != self.update:
            self.update, self.part = trainer.state.global_step, 0
            self.rows = self.encoded(self.update)
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        parts = trainer.current_gradient_accumulation_steps * world
        number, self.part = self.part * world + rank, self.part + 1
        mine = self.rows[number * len(self.rows) // parts : (number + 1) * len(self.rows) // parts]
        every = sum(map(_learnt, self.rows))
        if not every or not sum(map(_learnt, mine)):
            return torch.zeros((), device=trainer.args.device)
        batch = padded([ids for ids, _ in mine], [labels for _, labels in mine], self.pad, trainer.args.device)
        mean = model(**batch, use_cache=False).loss
        found: torch.Tensor = mean * (parts * sum(map(_learnt, mine)) / every)
        return found

    def encoded(self, update: int) -> list[tuple[list[int], list[int]]]:
        """The rows beside an update as (token ids, labels), cut as those of the stage are."""
        values = [self.sources[source].rows[row] for source, row in self.order.rows(update)]
        limit = getattr(self.trainer.args, "max_length", None)
        keeps_end = getattr(self.trainer.args, "truncation_mode", "keep_start") == "keep_end"
        kept = slice(None, limit) if limit is None or not keeps_end else slice(-limit, None)
        found = []
        for row in encode.encoded(values, self.reader):
            # nothing stands before the first token from which it could be told
            found.append((row.ids[kept], [IGNORE, *row.labels[kept][1:]]))
        return found


def _learnt(row: tuple[list[int], list[int]]) -> int:
    return sum(token != IGNORE for token in row[1])


def add(job: Job, trainer: BaseTrainer, weight: float) -> None:
    """Give a trainer the replay of its job as a term, where there is one, and note in the job what is replayed.

    Args:
        weight: of the term.
    """
    if not job.replay:
        return
    args: Any = trainer.args
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    per_update, updates = rows_of_update(job.ticket.replay_ratio, rows), _updates(trainer)
    sizes, weights = [len(source.rows) for source in job.replay], [source.weight for source in job.replay]
    order = Beside(sizes, weights, per_update, updates, job.ticket.seed)
    term = ReplayTerm(job.replay, order, job.tokenizer, trainer)
    trainer.terms = [*trainer.terms, Term(NAME, term.loss, lambda: weight)]
    job.data |= replay.counted(job.replay, order.counts, rows * updates)


def _updates(trainer: BaseTrainer) -> int:
    """Of an epoch of the task's rows."""
    if isinstance(trainer, Online):
        passes = trainer.prompt_order().rollouts * trainer.passes_per_rollout
        accumulation: int = trainer.args.gradient_accumulation_steps
        return -(-passes // accumulation)
    order = trainer.row_order()
    return max(1, len(order) // order.batch)
