"""Replayed rows as a term of a loss (DPO, KTO, PPO, RLOO, GRPO, SDFT): their text is learnt beside the stage's own rows
(PPO-ptx; Ouyang et al. 2022, arXiv 2203.02155, eq. 2).

The rows beside an update, and the number of tokens that their loss is a mean over, follow from the number of the update
alone. Micro-batches and processes share them out, so that neither is in the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from align.data import encode, replay
from align.data.replay import Beside, Source
from align.data.tokenizer import TextTokenizer
from align.rl import scoring
from align.rl.ptx import IGNORE, Learnt, learnt, padded, rows_of_update
from align.trainers.base import BaseTrainer
from align.trainers.rollout_record import RolloutRecord
from align.trainers.terms import Term

if TYPE_CHECKING:
    from align.stage.job import Job

NAME = "ptx"


class ReplayTerm:
    """The language-model loss on the rows that stand beside an update.

    Args:
        rows: of the update of that number, counted from 0.
        pad: the token that fills rows up.
        trainer: in whose loss the term is.
    """

    def __init__(self, rows: Callable[[int], Sequence[Learnt]], pad: int, trainer: BaseTrainer) -> None:
        self.rows_of, self.pad, self.trainer = rows, pad, trainer
        self.update, self.part = -1, 0  # the update under way, and its micro-batches so far
        self.rows: Sequence[Learnt] = ()  # beside that update

    def loss(self, model: nn.Module) -> torch.Tensor:
        """This micro-batch's part: the mean over micro-batches and processes is the mean over all tokens that the rows
        of the update are to teach. 0 where it has none of the rows."""
        trainer = self.trainer
        if trainer.state.global_step != self.update:
            self.update, self.part = trainer.state.global_step, 0
            self.rows = self.rows_of(self.update)
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        parts = trainer.current_gradient_accumulation_steps * world
        number, self.part = self.part * world + rank, self.part + 1
        mine = self.rows[number * len(self.rows) // parts : (number + 1) * len(self.rows) // parts]
        every = sum(map(_tokens, self.rows))
        if not every or not sum(map(_tokens, mine)):
            return torch.zeros((), device=trainer.args.device)
        batch = padded([ids for ids, _ in mine], [labels for _, labels in mine], self.pad, trainer.args.device)
        mean = model(**batch, use_cache=False).loss
        found: torch.Tensor = mean * (parts * sum(map(_tokens, mine)) / every)
        return found


def _tokens(row: Learnt) -> int:
    return sum(token != IGNORE for token in row[1])


@dataclass(frozen=True)
class Drawn:
    """Rows drawn anew for each epoch, from several sources.

    Args:
        sources: the rows.
        order: which of them stand beside which update.
        reader: makes tokens of them.
        args: the trainer's, which cut the rows as those of the stage.
    """

    sources: Sequence[Source]
    order: Beside
    reader: TextTokenizer
    args: Any

    def rows(self, update: int) -> list[Learnt]:
        """Those beside an update."""
        values = [self.sources[source].rows[row] for source, row in self.order.rows(update)]
        limit = getattr(self.args, "max_length", None)
        keeps_end = getattr(self.args, "truncation_mode", "keep_start") == "keep_end"
        kept = slice(None, limit) if limit is None or not keeps_end else slice(-limit, None)
        return [learnt(row.ids[kept], row.labels[kept]) for row in encode.encoded(values, self.reader)]


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
    drawn = Drawn(job.replay, order, TextTokenizer.of(job.tokenizer), args)
    term = ReplayTerm(drawn.rows, scoring.padding(job.tokenizer), trainer)
    trainer.terms = [*trainer.terms, Term(NAME, term.loss, lambda: weight)]
    job.data |= replay.counted(job.replay, order.counts, rows * updates)


def _updates(trainer: BaseTrainer) -> int:
    """Of an epoch of the task's rows."""
    if isinstance(trainer, RolloutRecord):
        passes = trainer.prompt_order().rollouts * trainer.passes_per_rollout
        accumulation: int = trainer.args.gradient_accumulation_steps
        return -(-passes // accumulation)
    order = trainer.row_order()
    return max(1, len(order) // order.batch)
