"""The policy that came in, as columns of log-probabilities beside the rows, made before the first step and kept.

TRL's own reference for a PEFT model is a copied adapter named "ref" that takes over only tensors named `.default.`,
and for a full model the path in its config. This one is right for every parameterization, and costs no memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn

from align.trainers.rows import LENGTH, OurRows, autocast

_INPUTS = ("input_ids", "attention_mask", "completion_mask")


class _NoReference(nn.Module):
    """Stands where TRL would make a reference model of its own; it is gone after construction."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self) -> None:
        """Never called: the reference is in the rows."""


class KeptReference(OurRows, ABC):
    """Mixed in before a TRL trainer that compares answers with a reference.

    Args:
        reference_file: where log-probabilities are kept, its stem followed by the name of the rows.
    """

    def __init__(self, *, model: nn.Module, reference_file: Path, **arguments: Any) -> None:
        super().__init__(model=model, ref_model=_NoReference(model.config), **arguments)
        self.ref_model = None
        self.reference_file = reference_file

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset

    def referenced(self, rows: Dataset, used: Sequence[int], name: str, columns: Sequence[str]) -> Dataset:
        """The rows with the incoming policy's log-probabilities, float32, from the file where they are kept already.

        Args:
            used: rows that a step will see; the others' stay NaN.
            name: of the rows: `train`, `eval`.
            columns: names for what `reference_log_probs` returns.
        """
        file = self.reference_file.with_name(f"{self.reference_file.stem}-{name}.safetensors")
        if not file.is_file():
            found = self._over(rows, used, columns)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                temporary = file.with_suffix(".part")
                save_file(found, temporary)
                temporary.replace(file)
            self.accelerator.wait_for_everyone()
        stored = load_file(file)
        for column in columns:
            rows = rows.add_column(column, stored[column].tolist())
        return rows

    @abstractmethod
    def reference_log_probs(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Summed log-probabilities of a collated batch's answers, (columns, rows)."""

    @torch.no_grad()
    def _over(self, rows: Dataset, used: Sequence[int], columns: Sequence[str]) -> dict[str, torch.Tensor]:
        """`reference_log_probs` of all rows, those of like length together; processes share them out."""
        accelerator = self.accelerator
        model, was_training = self.model.to(accelerator.device), self.model.training
        model.eval()
        size, lengths = self.args.per_device_train_batch_size * 2, rows[LENGTH]
        by_length = sorted(used, key=lambda i: lengths[i])
        batches = [by_length[i : i + size] for i in range(0, len(by_length), size)]
        out = torch.full((len(columns), len(rows)), float("nan"), device=accelerator.device)
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            with autocast(self):
                out[:, batch] = self.reference_log_probs(model, self.data_collator([rows[i] for i in batch])).float()
        if accelerator.num_processes > 1:
            parts = accelerator.gather(out.unsqueeze(0))
            out = torch.nan_to_num(parts).sum(0).where(~parts.isnan().all(0), float("nan"))
        model.train(was_training)
        return {column: out[number].cpu().contiguous() for number, column in enumerate(columns)}


def answer_log_probs(model: nn.Module, batch: dict[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
    """Summed log-probability of each answer under the model as it stands, adapters and all.

    Args:
        batch: of TRL's collator: `input_ids`, `attention_mask`, `completion_mask`, each (rows, tokens).
        prefix: of those names.

    Returns:
        (rows,)
    """
    device = next(model.parameters()).device
    ids, attention, answers = (batch[prefix + name].to(device) for name in _INPUTS)
    labels = ids.masked_fill(answers == 0, -100)
    outputs = model(input_ids=ids, attention_mask=attention, use_cache=False, labels=labels, fused_lm_head=True)
    sums: torch.Tensor = outputs.log_probs[:, -(labels.size(1) - 1) :].sum(dim=1)
    return sums
