"""Which tokens of the answers are left untrained: those that the policy finds improbable before it is trained.

Wu et al. 2025 (arXiv 2501.14315) find that a model forgets by learning these: answers that it wrote itself have few. It
takes one pass over the rows, whose log-probabilities are kept in the folder of the stage.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from align.data.encode import IGNORE
from align.data.order import GROUP
from align.errors import AlignError
from align.forgetting.bench import Bench, batches, padded
from align.forgetting.share import Share
from align.run_folder import files
from align.stage.random_state import unmoved

if TYPE_CHECKING:
    from datasets import Dataset

    from align.stage.job import Job

LogProbs = NDArray[np.float32]
_READ: Final = 1000  # rows of the table that are in memory together
_SHOWN: Final = 60  # characters of an answer that is named
_NAME: Final = "log_probs"


@dataclass(frozen=True)
class Limit:
    """What is masked.

    Attributes:
        perplexity: exp(-log p) beyond which a token is improbable.
        at_random: as many tokens of each row, drawn by the seed, in place of the improbable ones.
    """

    perplexity: float
    at_random: bool
    seed: int

    def beyond(self, log_probs: LogProbs) -> NDArray[np.bool_]:
        """Which tokens are improbable; NaN, of a token that nothing predicts, is not."""
        found: NDArray[np.bool_] = log_probs.astype(np.float64) < -math.log(self.perplexity)
        return found

    def chosen(self, row: int, log_probs: LogProbs) -> list[int]:
        """The places among a row's trained tokens that are masked."""
        found = np.flatnonzero(self.beyond(log_probs)).tolist()
        if not self.at_random:
            return list(found)
        predicted = np.flatnonzero(~np.isnan(log_probs)).tolist()
        return random.Random(f"mask {self.seed} {row}").sample(predicted, len(found))


@dataclass(frozen=True)
class Found:
    """The log-probability of every trained token of the task's rows, in the order of rows; NaN where nothing stands
    before it.

    Attributes:
        counts: tokens of each row; 0 for a replayed one, which is not masked.
    """

    log_probs: LogProbs
    counts: NDArray[np.int64]

    @property
    def each(self) -> list[LogProbs]:
        """By row."""
        return np.split(self.log_probs, self.counts.cumsum()[:-1])


def masked(job: Job, rows: Dataset, limit: Limit, args: Any) -> Dataset:
    """The rows with label IGNORE at what is masked; those that have no token left to train are left out.

    Replayed rows stay as they are. `job.data["masked"]` tells how much was masked.

    Args:
        rows: the table "train" of `align.data.tokens.language_modeling`.
        args: of the trainer: its precision, and `max_length`, beyond which packing cuts rows.

    Raises:
        AlignError: no row of the task has a token left.
    """
    found = measured(job, rows, args)
    each = found.each
    gone = [int(limit.beyond(one).sum()) for one in each]
    left = [int((~np.isnan(one)).sum()) - count for one, count in zip(each, gone, strict=True)]
    empty = {row for row, count in enumerate(found.counts) if count and not left[row]}
    if len(empty) == np.count_nonzero(found.counts):
        what = f"no token of the answers is left to train: all have a perplexity above {limit.perplexity:g}"
        raise AlignError(what, f"raise `stages.{job.ticket.stage}.mask_above_perplexity`, or leave it out")
    job.data["masked"] = {
        "above_perplexity": limit.perplexity,
        "at_random": limit.at_random,
        "answer_tokens": sum(gone) + sum(left),
        "masked_tokens": sum(gone),
        "rows_left_out": len(empty),
    }
    if empty:
        job.warn(_left_out(job, rows, limit, sorted(empty)))
    return job.table("masked", _written(rows, found, limit, empty), len(rows) - len(empty))


def _left_out(job: Job, rows: Dataset, limit: Limit, empty: list[int]) -> str:
    labels = [token for token in rows[empty[0]]["labels"] if token != IGNORE]
    first = str(job.tokenizer.decode(labels, skip_special_tokens=True)).strip()
    shown = first if len(first) <= _SHOWN else f"{first[:_SHOWN]} …"
    said = "1 row has" if len(empty) == 1 else f"{len(empty):,} rows have"
    text = f"{said} no token left to train with `mask_above_perplexity: {limit.perplexity:g}` and "
    return f"{text}{'is' if len(empty) == 1 else 'are'} left out; the first has the answer {shown!r}"


def _written(rows: Dataset, found: Found, limit: Limit, empty: set[int]) -> Iterator[dict[str, list[Any]]]:
    """The table again, masked."""
    each = found.each
    for start in range(0, len(rows), _READ):
        batch = rows[start : start + _READ]
        keep = [i for i in range(len(batch[GROUP])) if start + i not in empty]
        for i in keep:
            labels, chosen = batch["labels"][i], limit.chosen(start + i, each[start + i])
            trained = [at for at, token in enumerate(labels) if token != IGNORE] if chosen else []
            for place in chosen:
                labels[trained[place]] = IGNORE
        yield {name: [values[i] for i in keep] for name, values in batch.items()}


# ---- the pass over the rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Tokens `start` to `end` of a row, of which those at `trained` are trained."""

    row: int
    start: int
    end: int
    trained: NDArray[np.int64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Where in the piece, of those that something stands before."""
        found: NDArray[np.int64] = self.trained[self.trained > self.start] - self.start
        return found


def measured(job: Job, rows: Dataset, args: Any) -> Found:
    """The log-probabilities under the job's model as it stands: from the file of the stage, or computed and put there.

    Each batch is computed whole by one process, and is the same for any number of them, and so are the figures.
    """
    pieces = list(_pieces(rows, args.max_length if args.packing else None))
    counts = np.zeros(len(rows), dtype=np.int64)
    for piece in pieces:
        counts[piece.row] += len(piece.trained)
    made_of = {"rows": files.file_sha256(job.dir.tokens / "train.arrow"), "cut": str(args.max_length)}
    kept = _read(job, made_of)
    if kept is not None and len(kept) == counts.sum():
        return Found(kept, counts)
    state = PartialState()
    done = 0

    def passed(more: int) -> None:
        nonlocal done
        done = min(done + more, len(pieces))
        job.at("looking for improbable tokens", done, len(pieces))

    share = Share(state.process_index, state.num_processes, passed if state.is_main_process else lambda _: None)
    with unmoved():
        flat = _computed(Bench(job.model, job.tokenizer, autocast=bool(args.bf16), share=share), rows, pieces)
    if state.is_main_process:
        file = job.dir.token_log_probs
        temporary = file.with_suffix(".part")
        save_file({_NAME: flat}, temporary, metadata=made_of)
        temporary.replace(file)
    state.wait_for_everyone()
    return Found(flat, counts)


def _read(job: Job, made_of: dict[str, str]) -> LogProbs | None:
    """What is kept, if it is of these rows."""
    file = job.dir.token_log_probs
    if not file.is_file():
        return None
    with safe_open(file, "numpy") as stored:
        if stored.metadata() != made_of:
            return None
        found: LogProbs = stored.get_tensor(_NAME)
    return found


def _pieces(rows: Dataset, longest: int | None) -> Iterator[Piece]:
    """The task's rows in order, each in pieces of at most `longest` tokens."""
    for start in range(0, len(rows), _READ):
        batch = rows[start : start + _READ]
        for number, (labels, replayed) in enumerate(zip(batch["labels"], batch[GROUP], strict=True)):
            trained = np.flatnonzero(np.asarray(labels) != IGNORE)
            step = longest or len(labels)
            for first in range(0, len(labels) if not replayed else 0, step):
                end = min(first + step, len(labels))
                yield Piece(start + number, first, end, trained[(trained >= first) & (trained < end)])


@torch.no_grad()
def _computed(bench: Bench, rows: Dataset, pieces: list[Piece]) -> LogProbs:
    """The log-probability of each trained token, piece by piece."""
    wanted = [piece for piece in pieces if len(piece.predicted)]
    lengths: Any = [range(piece.end - piece.start) for piece in wanted]
    starts = [int(piece.predicted[0]) - 1 for piece in wanted]
    found: dict[int, list[float]] = {}
    training = bench.model.training
    bench.model.eval()
    for _, batch in bench.share.mine(batches(bench, lengths, starts)):
        table = rows[[wanted[i].row for i in batch]]["input_ids"]
        ids = [row[wanted[i].start : wanted[i].end] for row, i in zip(table, batch, strict=True)]
        values = iter(_log_probs(bench, ids, [wanted[i].predicted for i in batch], min(starts[i] for i in batch)))
        for i in batch:
            found[i] = [next(values) for _ in wanted[i].predicted]
    bench.model.train(training)
    found = bench.share.together(found)
    each = iter(found[i] for i in range(len(wanted)))
    flat = [_aligned(piece, next(each) if len(piece.predicted) else []) for piece in pieces]
    return np.concatenate(flat) if flat else np.zeros(0, dtype=np.float32)


def _aligned(piece: Piece, values: list[float]) -> LogProbs:
    """NaN for the very first token of a piece, if it is trained."""
    missing = len(piece.trained) - len(values)
    return np.array([math.nan] * missing + values, dtype=np.float32)


def _log_probs(bench: Bench, rows: list[list[int]], predicted: list[NDArray[np.int64]], first: int) -> list[float]:
    """Of the tokens at `predicted` of each row, one row after the other.

    Args:
        first: the first position that predicts one.
    """
    ids, mask = padded(bench, rows)
    where = [(row, at) for row, places in enumerate(predicted) for at in places.tolist()]
    row, at = torch.tensor(where, dtype=torch.long, device=ids.device).unbind(1)
    logits = bench.logits(ids, mask, first)[row, at - 1 - first].float()
    found: list[float] = logits.log_softmax(-1).gather(-1, ids[row, at][:, None])[:, 0].tolist()
    return found
