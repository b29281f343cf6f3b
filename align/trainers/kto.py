"""KTO on TRL's KTOTrainer (Ethayarajh et al. 2024, arXiv 2402.01306), against the policy that came in.

KTO holds an answer against the KL of its batch, estimated from its prompts with answers to other prompts. That batch is
the whole of an update, over processes and accumulated parts, so that these are in no figure and no gradient; and of
held-out rows it is all of them. Every epoch has the same batches, and so one reference.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import nn
from trl import KTOTrainer

from align.data.order import RowOrder
from align.errors import AlignError, Exit
from align.trainers import masks
from align.trainers.held_out import HeldOut
from align.trainers.kept_reference import KeptReference, answer_log_probs
from align.trainers.step_rows import Elsewhere

REFERENCE, KL_REFERENCE = "ref_logps", "ref_KL_logps"  # columns, by TRL's names
ANSWER, KL_ANSWER = "completion_ids", "KL_completion_ids"


class OneOrder(RowOrder):
    """The order of the first epoch, in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """It stays."""


class KtoTrainer(HeldOut, KeptReference, KTOTrainer):
    """KTOTrainer over token ids, with the reference's log-probabilities beside them."""

    units: ClassVar = {
        "kl": "answers",
        "entropy": "tokens",
        **{f"{figure}/{side}": side for figure in ("rewards", "logps") for side in ("chosen", "rejected")},
        **{f"logits/{side}": f"{side} tokens" for side in ("chosen", "rejected")},
    }
    loss_unit = "answers"
    more_columns = (masks.ANSWER, masks.KL_ANSWER)

    def __init__(self, *, args: Any, **arguments: Any) -> None:
        strategy, args.train_sampling_strategy = args.train_sampling_strategy, "sequential"  # TRL takes no other
        super().__init__(args=args, **arguments)
        args.train_sampling_strategy = strategy
        self.kl: torch.Tensor | None = None  # of the update, or of the held-out rows, once it is known
        self.data_collator: Any = masks.like(masks.AnswerCollator, self.data_collator)
        columns = (REFERENCE, KL_REFERENCE) if self.calculate_KL else (REFERENCE,)
        rows = self.step_rows(epochs=1)
        if self.calculate_KL:
            rows.columns.update(_others(rows.rows, other_answers(rows.places, rows.order.batch, _prompts(rows.rows))))
        self.refer_steps(rows, columns)
        self.train_dataset: Any = rows
        if self.eval_dataset is not None:
            held: Dataset = self.eval_dataset
            if self.calculate_KL:
                for name, values in _held_out_others(held, rows.rows).items():
                    held = held.add_column(name, list(values))
            self.eval_dataset: Dataset = self.refer_held_out(held, columns)

    def row_order(self) -> RowOrder:
        """The same in every epoch."""
        found = super().row_order()
        if isinstance(found, OneOrder):
            return found
        return OneOrder(found.lengths, found.groups, found.batch, found.strategy, found.seed)

    def reference_log_probs(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Of the answers and, where KL is estimated, of those to other prompts: (1 or 2, rows)."""
        found = [answer_log_probs(model, batch)]
        if self.calculate_KL:
            with torch.no_grad():  # as in a step
                found.append(answer_log_probs(model, batch, "KL_"))
        return torch.stack(found)

    def counts(self, inputs: Mapping[str, torch.Tensor], outputs: Any) -> dict[str, torch.Tensor]:
        """Answers and their tokens, of both sides."""
        chosen, tokens = inputs["label"].bool(), inputs["completion_mask"][:, 1:].sum(1)
        return {
            "answers": torch.tensor(len(chosen), device=chosen.device),
            "chosen": chosen.sum(),
            "rejected": (~chosen).sum(),
            "chosen tokens": tokens[chosen].sum(),
            "rejected tokens": tokens[~chosen].sum(),
            "tokens": tokens.sum(),
        }

    def derived(self, values: dict[str, float]) -> dict[str, float]:
        """The margin, between the means of both sides, where there are both."""
        sides = [values.get(f"rewards/{side}") for side in ("chosen", "rejected")]
        return {} if None in sides else {"rewards/margins": values["rewards/chosen"] - values["rewards/rejected"]}

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The parts of an update, all of which its KL is estimated from before the first is trained on."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.model.train()  # an evaluation may lie before it
        self.kl = self._estimated(batches, len(batches)) if self.calculate_KL and batches else None
        return batches, items

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """With the KL of all held-out rows, which are gone through once for it."""
        self.model.eval()
        self.kl = self._estimated(dataloader, self.left) if self.calculate_KL else None
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.kl = None

    def _estimated(self, batches: Iterable[dict[str, Any]], count: int) -> torch.Tensor:
        """The mean log ratio of policy to reference over the answers to other prompts, of all processes.

        Args:
            count: of the batches that are this process's own, the first ones.
        """
        self.kl, own = None, torch.zeros(2, device=self.accelerator.device)
        for number, batch in enumerate(batches):
            inputs = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                found = self._compute_kl_logps(self.model, inputs) - inputs[KL_REFERENCE]
            if number < count:
                own += torch.stack([found.sum(), torch.tensor(float(len(found)), device=found.device)])
        sums: torch.Tensor = self.accelerator.reduce(own, "sum")
        total, answers = sums.unbind()
        return total / answers

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's; a KL that is known stands in place of the batch's own, which is a difference to the reference."""
        if self.kl is not None:
            inputs = {**inputs, KL_REFERENCE: torch.zeros_like(inputs[KL_REFERENCE])}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        found: torch.Tensor = (
            super()._compute_kl_logps(model, batch) if self.kl is None else self.kl.expand(len(batch["label"]))
        )
        return found


def _prompts(rows: Dataset) -> list[Hashable]:
    return [tuple(ids) for ids in rows["prompt_ids"]]


def _others(rows: Dataset, taken: Sequence[int]) -> dict[str, Sequence[Any]]:
    """The columns that KL is estimated from: answers of the taken rows, and their masks."""
    names = {ANSWER: KL_ANSWER, masks.ANSWER: masks.KL_ANSWER}
    return {to: Elsewhere(rows, name, taken) for name, to in names.items() if name in rows.column_names}


def _held_out_others(held: Dataset, trained: Dataset) -> dict[str, Sequence[Any]]:
    """Those of held-out rows: of one another, or of training rows where there is but one prompt."""
    prompts = _prompts(held)
    if len(set(prompts)) > 1:
        return _others(held, other_answers(range(len(held)), len(held), prompts))
    other = [row for row, prompt in enumerate(_prompts(trained)) if prompt != prompts[0]]
    return _others(trained, [other[at % len(other)] for at in range(len(held))])


def other_answers(order: Sequence[int], batch: int, prompts: Sequence[Hashable]) -> list[int]:
    """For each place the row whose answer its prompt gets in the estimate of KL: one to another prompt.

    Within a batch the answers are dealt out so that each comes once, as far as that goes; where all prompts differ it
    is that of the place before, as TRL has it. In a batch of one prompt alone it is the next answer of the order.

    Args:
        order: row indices, batch after batch.
        batch: rows of a batch over all processes and accumulation steps.
        prompts: of each row.

    Raises:
        AlignError: all rows have one prompt.
    """
    if len({prompts[row] for row in order}) < 2:
        what = "all answers have the same prompt, but the loss 'kto' estimates the KL from answers to other prompts"
        raise AlignError(what, "use `loss_type: apo_zero_unpaired`, or data with more prompts", exit=Exit.BAD_INPUT)
    found = []
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        dealt = _dealt([prompts[row] for row in rows])
        found += [rows[at] for at in dealt] if dealt else _nearest(order, start, len(rows), prompts)
    return found


def _dealt(prompts: Sequence[Hashable]) -> list[int]:
    """A permutation in which no place gets an answer to its own prompt; none if a prompt has more than half of them."""
    members: dict[Hashable, list[int]] = {}
    for at, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(at)
    most = max(map(len, members.values()))
    if 2 * most > len(prompts):
        return []
    in_turn = [at for places in members.values() for at in places]
    found = [0] * len(prompts)
    for turn, at in enumerate(in_turn):
        found[at] = in_turn[turn - most]  # the places of a prompt stand together: this far back is another
    return found


def _nearest(order: Sequence[int], start: int, count: int, prompts: Sequence[Hashable]) -> list[int]:
    """For `count` places from `start` on, the row of another prompt that comes next: in the batch, after its end from
    its beginning, then in the rest of the order."""
    found = []
    for at in range(count):
        around = [start + (at + step) % count for step in range(1, count)]
        beyond = ((start + count + step) % len(order) for step in range(len(order)))
        row = order[start + at]
        others = (
            order[place] for places in (around, beyond) for place in places if prompts[order[place]] != prompts[row]
        )
        found.append(next(others))
    return found
