"""KTO on TRL's KTOTrainer (Ethayarajh et al. 2024, arXiv 2402.01306), against the policy that came in.

TRL's own reference for a PEFT model is a copied adapter named "ref", and for a full model the path in its config; here
the incoming policy's log-probabilities are computed before the first step and kept. KTO holds an answer against the KL
of its batch, estimated from prompts with answers to other prompts of the batch, so that every epoch has the same
batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn
from trl import KTOTrainer

from align.data.order import RowOrder
from align.trainers.dpo import answer_log_probs
from align.trainers.rows import LENGTH, OurRows, autocast

REFERENCE, KL_REFERENCE = "ref_logps", "ref_KL_logps"  # columns, by TRL's names
ANSWER, KL_ANSWER = "completion_ids", "KL_completion_ids"
_INPUTS = ("input_ids", "attention_mask", "completion_mask")


class OneOrder(RowOrder):
    """The order of the first epoch, in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """It stays."""


class _NoReference(nn.Module):
    """Stands where TRL would make a reference of its own; it is gone after construction."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self) -> None:
        """Never called: the reference is in the rows."""


class KtoTrainer(OurRows, KTOTrainer):
    """KTOTrainer over token ids, with the reference's log-probabilities beside them."""

    def __init__(self, *, model: nn.Module, args: Any, reference_file: Path, **arguments: Any) -> None:
        strategy, args.train_sampling_strategy = args.train_sampling_strategy, "sequential"  # TRL takes no other
        super().__init__(model=model, args=args, ref_model=_NoReference(model.config), **arguments)
        args.train_sampling_strategy = strategy
        self.ref_model = None
        self.reference_file = reference_file
        rows, steps = self.train_dataset, args.max_steps if args.max_steps > 0 else None
        order = self.row_order()
        self.train_dataset: Dataset = self._with_reference(rows, order.rows(0), order.batch, "train", steps)
        if self.eval_dataset is not None:
            held, batch = self.eval_dataset, args.per_device_eval_batch_size
            self.eval_dataset: Dataset = self._with_reference(held, list(range(len(held))), batch, "eval", None)

    def row_order(self) -> RowOrder:
        """The same in every epoch."""
        found = super().row_order()
        return OneOrder(found.lengths, found.groups, found.batch, found.strategy, found.seed)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset

    def _with_reference(self, rows: Dataset, order: list[int], batch: int, name: str, steps: int | None) -> Dataset:
        """Add the incoming policy's log-probabilities, and the answers that KL is estimated from; of rows that no step
        will see they stay NaN."""
        if self.calculate_KL:
            rows = rows.add_column(KL_ANSWER, [rows[ANSWER][i] for i in other_answers(order, batch, len(rows))])
        file = self.reference_file.with_name(f"{self.reference_file.stem}-{name}.safetensors")
        if not file.is_file():
            used = sorted(set(order[: steps * batch] if steps else order))
            found = self._reference(rows, used)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                temporary = file.with_suffix(".part")
                save_file(found, temporary)
                temporary.replace(file)
            self.accelerator.wait_for_everyone()
        for column, values in load_file(file).items():
            rows = rows.add_column(column, values.tolist())
        return rows

    @torch.no_grad()
    def _reference(self, rows: Dataset, used: list[int]) -> dict[str, torch.Tensor]:
        """Summed log-probabilities of the answers, float32, one per row; processes share the rows out."""
        accelerator = self.accelerator
        model, was_training = self.model.to(accelerator.device), self.model.training
        model.eval()
        size, lengths = self.args.per_device_train_batch_size * 2, rows[LENGTH]
        by_length = sorted(used, key=lambda i: lengths[i])
        batches = [by_length[i : i + size] for i in range(0, len(by_length), size)]
        wanted = {REFERENCE: "", KL_REFERENCE: "KL_"} if self.calculate_KL else {REFERENCE: ""}
        out = torch.full((len(wanted), len(rows)), float("nan"), device=accelerator.device)
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            collated = self.data_collator([rows[i] for i in batch])
            for number, prefix in enumerate(wanted.values()):
                inputs = {name: collated[prefix + name].to(accelerator.device) for name in _INPUTS}
                with autocast(self):
                    out[number, batch] = answer_log_probs(model, inputs).float()
        if accelerator.num_processes > 1:
            parts = accelerator.gather(out.unsqueeze(0))
            out = torch.nan_to_num(parts).sum(0).where(~parts.isnan().all(0), float("nan"))
        model.train(was_training)
        return {name: out[number].cpu().contiguous() for number, name in enumerate(wanted)}


def other_answers(order: list[int], batch: int, count: int) -> list[int]:
    """For each row the row whose answer its prompt gets in the estimate of KL: the one before it in its batch, and for
    the first the last, as TRL has it.

    Args:
        order: row indices, batch after batch.
        batch: rows of a batch over all processes and accumulation steps.
        count: rows in all.
    """
    found = list(range(count))
    for start in reversed(range(0, len(order), batch)):  # a row that comes twice has its place in the first batch
        rows = order[start : start + batch]
        for i, row in enumerate(rows):
            found[row] = rows[i - 1]
    return found
