"""DPO on TRL's DPOTrainer, with a reference that is always the policy that came in.

TRL's own reference for a PEFT model is a copied adapter named "ref" that takes over only tensors named `.default.`,
and for a full model the path in its config. Here the incoming policy's log-probabilities are computed before the
first step and kept, for every parameterization alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn
from trl import DPOTrainer

from align.trainers.rows import LENGTH, OurRows, autocast

CHOSEN, REJECTED = "ref_chosen_logps", "ref_rejected_logps"  # columns, by TRL's names


class _NoReference(nn.Module):
    """Stands where TRL would make a reference model of its own; it is gone after construction."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self) -> None:
        """Never called: the reference is in the rows."""


class DpoTrainer(OurRows, DPOTrainer):
    """DPOTrainer over token ids, with the reference's log-probabilities beside them."""

    def __init__(self, *, model: nn.Module, reference_file: Path, **arguments: Any) -> None:
        super().__init__(model=model, ref_model=_NoReference(model.config), **arguments)
        self.ref_model = None
        self.reference_file = reference_file
        self.train_dataset: Dataset = self._with_reference(self.train_dataset, "train")
        if self.eval_dataset is not None:
            self.eval_dataset: Dataset = self._with_reference(self.eval_dataset, "eval")

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset

    def _with_reference(self, rows: Dataset, name: str) -> Dataset:
        """Add the incoming policy's log-probabilities; those of rows that no step will see stay NaN."""
        file = self.reference_file.with_name(f"{self.reference_file.stem}-{name}.safetensors")
        if file.is_file():
            found = load_file(file)
        else:
            args = self.args
            steps = args.max_steps if name == "train" and args.max_steps > 0 else None
            used = sorted(self.row_order().used(steps)) if steps else list(range(len(rows)))
            found = self._reference(rows, used)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                temporary = file.with_suffix(".part")
                save_file(found, temporary)
                temporary.replace(file)
            self.accelerator.wait_for_everyone()
        return rows.add_column(CHOSEN, found[CHOSEN].tolist()).add_column(REJECTED, found[REJECTED].tolist())

    @torch.no_grad()
    def _reference(self, rows: Dataset, used: list[int]) -> dict[str, torch.Tensor]:
        """Summed log-probabilities of the answers, float32, one per row; processes share the rows out."""
        accelerator = self.accelerator
        model, was_training = self.model.to(accelerator.device), self.model.training
        model.eval()
        size = self.args.per_device_train_batch_size * 2
        lengths = rows[LENGTH]
        by_length = sorted(used, key=lambda i: lengths[i])
        batches = [by_length[i : i + size] for i in range(0, len(by_length), size)]
        out = torch.full((2, len(rows)), float("nan"), device=accelerator.device)
        mine = rows.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            collated = self.data_collator([mine[i] for i in batch])
            inputs = {name: tensor.to(accelerator.device) for name, tensor in collated.items()}
            with autocast(self):
                sums = answer_log_probs(model, inputs)
            out[0, batch], out[1, batch] = sums.float().chunk(2)
        if accelerator.num_processes > 1:
            parts = accelerator.gather(out.unsqueeze(0))
            out = torch.nan_to_num(parts).sum(0).where(~parts.isnan().all(0), float("nan"))
        model.train(was_training)
        return {CHOSEN: out[0].cpu().contiguous(), REJECTED: out[1].cpu().contiguous()}


def answer_log_probs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed log-probability of each answer under the model as it stands, adapters and all.

    Args:
        inputs: a batch of DPOTrainer's collator: `input_ids`, `attention_mask`, `completion_mask`, each
            (2 x pairs, tokens), chosen answers first.

    Returns:
        (2 x pairs,)
    """
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    outputs = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        use_cache=False,
        labels=labels,
        fused_lm_head=True,
    )
    sums: torch.Tensor = outputs.log_probs[:, -(labels.size(1) - 1) :].sum(dim=1)
    return sums
