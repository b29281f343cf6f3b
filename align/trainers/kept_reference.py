"""The policy that came in, as log-probabilities beside the rows, made before the first step and kept.

TRL's own reference for a PEFT model is a copied adapter named "ref" that takes over only tensors named `.default.`,
and for a full model the path in its config. This one is right for every parameterization, and costs no memory.

In bfloat16 the sum of an answer's log-probabilities depends, in its third digit, on the rows beside it and on how wide
they are padded. So the reference is computed batch for batch as the steps take them, in the same process, by the same
forward pass: the two are rounded alike, and before the first step every log ratio is exactly 0. A row has as many
references as batches that it comes in: one forward pass for each batch that is trained on, beside the step's own three.
Of one epoch, which is usual, that is one pass over the rows. Batches that are the same in every epoch would need no
more for several; but they are another order of rows, and always hold a row against the same others.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from align.data.order import RowOrder
from align.rl.critic import dropout_rates, no_rate
from align.trainers.base import BaseTrainer, autocast
from align.trainers.held_out import batches_of
from align.trainers.step_rows import StepRows, StepSampler

Columns = dict[str, torch.Tensor]
ROWS = "rows"  # in the file: the row at each place
_INPUTS = ("input_ids", "attention_mask", "completion_mask")


class _NoReference(nn.Module):
    """Stands where TRL would make a reference model of its own; it is gone after construction."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.placed = nn.Parameter(torch.zeros(1), requires_grad=False)  # ZeRO-3 asks a first weight for its precision

    def forward(self) -> None:
        """Never called: the reference is in the rows."""


class KeptReference(BaseTrainer, ABC):
    """Mixed in before a TRL trainer that compares answers with a reference.

    Args:
        reference_file: where log-probabilities are kept, its stem followed by the name of the rows.

    Attributes:
        more_columns: of the rows, that the collator takes beside TRL's.
        reference_columns: what `reference_log_probs` gives, as columns of the rows.
    """

    more_columns: ClassVar[Sequence[str]] = ()
    reference_columns: Sequence[str] = ()

    def __init__(self, *, model: nn.Module, reference_file: Path, **arguments: Any) -> None:
        super().__init__(model=model, ref_model=_NoReference(model.config), **arguments)
        self.ref_model = None
        self.reference_file = reference_file

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: list[str] = vars(self)["_signature_columns"]
        self._signature_columns = list(dict.fromkeys([*known, *self.more_columns]))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return StepSampler(self.train_dataset)

    @abstractmethod
    def reference_log_probs(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Summed log-probabilities of a collated batch's answers, (columns, rows)."""

    def row_order(self) -> RowOrder:
        """As of all trainers; the rows have theirs once they stand in it."""
        return self.train_dataset.order if isinstance(self.train_dataset, StepRows) else super().row_order()

    def steps(self) -> int:
        """The updates that this training has, as transformers counts them."""
        order = self.row_order()
        per_epoch = len(order) // order.batch
        asked: int = self.args.max_steps
        return asked if asked > 0 else math.ceil(self.args.num_train_epochs * per_epoch)

    def step_rows(self, epochs: int | None = None) -> StepRows:
        """The training rows in the order of steps.

        Args:
            epochs: so many have batches of their own; None: all that are trained.
        """
        order = self.row_order()
        return StepRows(self.train_dataset, order, epochs or max(1, -(-self.steps() * order.batch // len(order))))

    def refer_steps(self, rows: StepRows, columns: Sequence[str]) -> None:
        """Put the incoming policy's log-probabilities beside the rows, float32; of places that no step takes, NaN.

        Args:
            columns: names for what `reference_log_probs` returns.
        """
        self.reference_columns = columns
        size, used = self.args.per_device_train_batch_size, min(self.steps() * rows.order.batch, len(rows.places))
        batches = [list(range(start, start + size)) for start in range(0, used, size)]
        with self._as_in_a_step():
            found = self._kept("train", rows, rows.places, batches, columns)
        rows.columns.update({column: found[column].tolist() for column in columns})

    @torch.no_grad()
    def refer_held_out(self, rows: Dataset, columns: Sequence[str]) -> Dataset:
        """Held-out rows with the incoming policy's log-probabilities, in the batches of an evaluation."""
        batches = batches_of(len(rows), self.args.per_device_eval_batch_size)
        with _mode(self.model, training=False):
            found = self._kept("eval", rows, list(range(len(rows))), batches, columns)
        for column in columns:
            rows = rows.add_column(column, found[column].tolist())
        return rows

    @contextlib.contextmanager
    def _as_in_a_step(self) -> Iterator[None]:
        """The model in training, with gradients, without dropout: 4-bit products take another way without gradients."""
        args = self.args
        if args.activation_checkpointing:  # or a pass with gradients needs more memory than a step
            given = dict(args.activation_checkpointing_kwargs or {})
            layers, offload = given.pop("every_n_layers", 1), given.pop("offload", False)
            self.model.activation_checkpointing_enable(given or None, every_n_layers=layers, offload=offload)
        with _mode(self.model, training=True), without_dropout(self.model):
            yield

    def _kept(
        self, name: str, rows: Any, places: Sequence[int], batches: Sequence[list[int]], columns: Sequence[str]
    ) -> Columns:
        """The log-probabilities by place: from the file, or computed and put there."""
        file = self.reference_file.with_name(f"{self.reference_file.stem}-{name}.safetensors")
        split = {"batch": str(len(batches[0])), "processes": str(self.accelerator.num_processes)}
        stored = _read(file, split, places)
        if stored is not None:
            return stored
        found = {ROWS: torch.tensor(places), **self.log_probs_of(rows, len(places), batches, columns)}
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            temporary = file.with_suffix(".part")
            save_file(found, temporary, metadata=split | {"sha256": _digest(found)})
            temporary.replace(file)
        self.accelerator.wait_for_everyone()
        return found

    def log_probs_of(self, rows: Any, places: int, batches: Sequence[list[int]], columns: Sequence[str]) -> Columns:
        """`reference_log_probs` of every batch, each in the process that trains on it, or evaluates it."""
        accelerator = self.accelerator
        model = self.model.to(accelerator.device)
        out = torch.full((len(columns), places), float("nan"), device=accelerator.device)
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            inputs = self._prepare_inputs(self.data_collator([rows[i] for i in batch]))
            with autocast(self):
                out[:, batch] = self.reference_log_probs(model, inputs).detach()
        if accelerator.num_processes > 1:
            parts = accelerator.gather(out.unsqueeze(0))
            out = torch.nan_to_num(parts).sum(0).where(~parts.isnan().all(0), float("nan"))
        return {column: out[number].cpu().contiguous() for number, column in enumerate(columns)}


def token_log_probs(model: nn.Module, batch: dict[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
    """Log-probability of each token of the answers under the model as it stands, adapters and all.

    Args:
        batch: of TRL's collator: `input_ids`, `attention_mask`, `completion_mask`, each (rows, tokens).
        prefix: of those names.

    Returns:
        (rows, tokens - 1), float32, 0 where nothing counts.
    """
    device = next(model.parameters()).device
    ids, attention, answers = (batch[prefix + name].to(device) for name in _INPUTS)
    labels = ids.masked_fill(answers == 0, -100)
    outputs = model(input_ids=ids, attention_mask=attention, use_cache=False, labels=labels, fused_lm_head=True)
    found: torch.Tensor = outputs.log_probs.float()  # accelerate makes the outputs of a step float32 before TRL sums
    return found[:, -(labels.size(1) - 1) :]  # a learnt prompt stands before them


def answer_log_probs(model: nn.Module, batch: dict[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
    """Summed log-probability of each answer, (rows,); arguments as of `token_log_probs`."""
    return token_log_probs(model, batch, prefix).sum(dim=1)


def _read(file: Path, split: dict[str, str], places: Sequence[int]) -> Columns | None:
    """What is kept, if it is of the same batches: a run may go on with another number of processes."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as stored:
            names, told = list(stored.keys()), dict(stored.metadata() or {})
            found = {name: stored.get_tensor(name) for name in names}
    except SafetensorError:  # it is cut, or altered in its head
        return None
    sha256 = told.pop("sha256", None)
    if told != split or ROWS not in names or sha256 not in (None, _digest(found)):
        return None
    return found if found[ROWS].tolist() == list(places) else None


def _digest(found: Columns) -> str:
    """Of the numbers, which steer every step."""
    parts = hashlib.sha256()
    for name in sorted(found):
        parts.update(name.encode())
        parts.update(found[name].numpy().tobytes())
    return parts.hexdigest()


@contextlib.contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """A model in training or in evaluation; as it was, afterwards."""
    was = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(was)


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """A model that drops nothing though it is in training."""
    found = dropout_rates(model)
    for module, name, value in found:
        setattr(module, name, no_rate(value))
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)
