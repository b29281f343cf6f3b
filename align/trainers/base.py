"""What every TRL trainer here has over TRL's own: our order of rows, terms added to its loss, adapters kept in the
precision they came in, no telemetry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import SequentialSampler
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from align.data.order import GROUP, LENGTH, RowOrder
from align.penalties.quadratic import Penalty
from align.penalties.ratio import ratios
from align.policy.base import heads
from align.policy.stack import TRAINED
from align.trainers.checkpoints import PortableCheckpoints
from align.trainers.terms import Term

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class BaseTrainer(PortableCheckpoints, Trainer):
    """Mixed in before a TRL trainer. The overridden methods are held by tests/test_trl_surface.py.

    Attributes:
        terms: what is added to TRL's loss in training.
        penalties: those of them that are on weights, whose gradients are compared with the task's.
    """

    terms: Sequence[Term] = ()
    penalties: Sequence[Penalty] = ()

    def __init__(self, *, model: nn.Module, **arguments: Any) -> None:
        kept = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(model=model, **arguments)
        unset_hf_deepspeed_config()  # of ZeRO-3 libraries would take the model for shared out, which it is not yet
        # TRL casts the adapters of a quantised model to bfloat16: small updates round away there, an adapter that
        # was handed over loses precision, and a resumed run differs from one that was never interrupted.
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.data = kept[name]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's loss with the terms added.

        They are computed on the module inside its DDP wrapper: gradients are exchanged all the same, and the wrapper
        sees one forward for one backward. One autocast around all passes casts each weight once.
        """
        if not (self.terms and self.model.training):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with autocast(self):
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = found[0] if return_outputs else found
            parts = self.current_gradient_accumulation_steps if self._divided(num_items_in_batch) else 1
            for term in self.terms:
                value = term.loss(self.model)
                if value is not None:
                    self._metrics["train"][f"loss/{term.name}"].append(self._of_processes(value.detach()))
                    loss = loss + term.weight() * value / parts
        return (loss, *found[1:]) if return_outputs else loss

    def _divided(self, num_items_in_batch: torch.Tensor | int | None) -> bool:
        """Whether a micro-batch's loss is a part of the update's already, as transformers asks it: a sum over tokens
        divided by those of the update, or one that its trainer divides."""
        if self.loss_is_scaled_for_ga is not None:
            return bool(self.loss_is_scaled_for_ga)
        return self.model_accepts_loss_kwargs and num_items_in_batch is not None

    def _of_processes(self, value: torch.Tensor) -> float:
        """The mean over processes."""
        if self.accelerator.num_processes == 1:
            return float(value)
        return float(self.accelerator.reduce(value.float(), "mean"))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> RowOrder:
        return self.row_order()

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler:
        """The rows as they stand; transformers would look for their lengths in a column that pairs have not."""
        return SequentialSampler(eval_dataset)

    def row_order(self) -> RowOrder:
        """The order of rows; independent of the number of processes at the same global batch."""
        rows, args = self.train_dataset, self.args
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        if GROUP in rows.column_names:
            return RowOrder(rows[LENGTH], rows[GROUP], batch, args.train_sampling_strategy, args.seed)
        lengths = [len(ids) for ids in rows["input_ids"]]  # packed rows
        return RowOrder(lengths, [0] * len(lengths), batch, args.train_sampling_strategy, args.seed)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the trained adapter of a checkpoint exactly; the frozen ones under it are loaded already."""
        peft: Any = self.model if model is None else model
        if not isinstance(peft, PeftModel):
            known = {name for name, _ in heads(Path(resume_from_checkpoint))} - {"__metadata__"}
            if (
                known <= peft.state_dict().keys() and self.is_fsdp_enabled
            ):  # transformers looks for a file of FSDP's own
                for file in sorted(Path(resume_from_checkpoint).glob("*.safetensors")):
                    peft.load_state_dict(load_file(file), strict=False)
            elif known <= peft.state_dict().keys():
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                # transformers writes fused experts one by one, and its trainer passes over names that it does not know:
                # training would go on from the weights that came in
                stored = type(peft).from_pretrained(resume_from_checkpoint, dtype=next(peft.parameters()).dtype)
                peft.load_state_dict(stored.state_dict())
            return
        weights = load_peft_weights(os.fspath(resume_from_checkpoint), device="cpu")
        result = set_peft_model_state_dict(peft, weights, adapter_name=TRAINED)
        # a learnt prompt is loaded beside the model, which PEFT then takes for one that the model has no place for
        unexpected = [key for key in result.unexpected_keys if key != "prompt_embeddings"]
        if unexpected:
            raise ValueError(f"the checkpoint has weights that the model does not have: {unexpected[:3]}")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is written with the finished model, once, by align."""

    def _send_telemetry(self) -> None:
        """We send none."""

    def penalise(self, penalties: Sequence[Penalty]) -> None:
        """Add penalties on weights to the loss."""
        self.penalties = penalties
        self.terms = [*self.terms, *(term_of(penalty) for penalty in penalties)]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Where the step is going to be logged, also how strong each penalty on weights is beside the rest: when the
        gradients of an update are whole, and not clipped yet."""
        found: torch.Tensor = super().training_step(*args, **kwargs)
        if self.penalties and self.accelerator.sync_gradients and self._logs_this_step():
            scaler = self.accelerator.scaler
            scale = float(scaler.get_scale()) if scaler is not None else 1.0
            for name, value in ratios(self.model, self.penalties, scale).items():
                self._metrics["train"][f"gradient_ratio/{name}"].append(value)
        return found

    def _logs_this_step(self) -> bool:
        """Whether the update under way ends with a line of metrics; with `logging_strategy: epoch`, every one may."""
        step, args = self.state.global_step + 1, self.args
        every = max(1, self.state.logging_steps) if args.logging_strategy == "steps" else 1
        logged = step % every == 0 or (step == 1 and args.logging_first_step)
        return bool(logged and args.logging_strategy != "no")


def term_of(penalty: Penalty) -> Term:
    """A penalty on weights as a term of the loss."""
    return Term(penalty.name, penalty.loss, lambda: penalty.weight)


def autocast(trainer: Trainer) -> torch.autocast:
    """The precision in which this trainer computes, for passes outside its own steps."""
    args, kind = trainer.args, trainer.accelerator.device.type
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    return torch.autocast(kind, dtype=dtype, enabled=bool(args.bf16 or args.fp16))
