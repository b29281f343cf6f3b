"""One pass of a trainer's model outside of its training, that draws no random number and leaves no trace."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

from align.stage.random_state import unmoved
from align.trainers.base import autocast
from align.trainers.held_out import by_itself
from align.trainers.step_rows import StepRows

_COMPUTE = ("torch", "transformers", "trl", "peft", "bitsandbytes", "kernels", "liger-kernel")
_ALONE = ("NO", "MULTI_CPU", "MULTI_GPU")  # each process holds the whole model


class Batch(NamedTuple):
    """A collated micro-batch, on the device."""

    inputs: dict[str, Any]
    rows: int
    sha256: str


def batch_of(trainer: Any) -> Batch:
    """The first micro-batch of the first process: the very one whose reference was computed as a whole."""
    rows, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
    places = range(min(size, len(rows))) if isinstance(rows, StepRows) else trainer.row_order().rows(0)[:size]
    inputs = trainer._prepare_inputs(trainer.data_collator([rows[place] for place in places]))
    hashed = hashlib.sha256()
    for name in sorted(inputs):
        tensor = inputs[name]
        if isinstance(tensor, torch.Tensor) and not tensor.is_floating_point():
            hashed.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return Batch(inputs, len(places), hashed.hexdigest())


def loss(trainer: Any, model: Any, batch: Batch, seen: list[tuple[Any, Any]]) -> float:
    """The trainer's own loss of a batch under a model, in this process alone, without dropout.

    Args:
        seen: gets the token ids and the outputs of each pass of the model.
    """

    def watched(**inputs: Any) -> Any:
        outputs = model(**inputs)
        seen.append((inputs["input_ids"], outputs))
        return outputs

    with _untouched(trainer, model):
        return float(trainer.compute_loss(watched, batch.inputs).detach())


@contextmanager
def _untouched(trainer: Any, model: Any) -> Iterator[None]:
    """Within, the model is in evaluation and computes as in a step; afterwards nothing tells that it was.

    Where a process holds the whole model gradients are on, since 4-bit products take another way without them; but
    what is set aside for a backward pass is let go at once, so that no more memory is needed than without them. Those
    of 8 bits take the same way, and would keep the inputs of every layer out of reach.
    """
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as entered:
        entered.enter_context(unmoved())
        entered.enter_context(trainer.unrecorded())
        entered.enter_context(by_itself(trainer.accelerator))
        entered.enter_context(autocast(trainer))
        entered.enter_context(torch.set_grad_enabled(is_whole(trainer) and precision_of(trainer) != "8-bit"))
        entered.enter_context(torch.autograd.graph.saved_tensors_hooks(_let_go, _let_go))
        if isinstance(model, DistributedDataParallel):
            entered.enter_context(model.no_sync())
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


def _let_go(tensor: torch.Tensor) -> torch.Tensor:
    """In place of what autograd would keep of a pass."""
    return tensor.new_empty(0)


def is_whole(trainer: Any) -> bool:
    """Whether each process holds the whole model."""
    return str(trainer.accelerator.distributed_type.value) in _ALONE


class _Again:
    """Stands for a model in a pass that it has made, and gives what it gave."""

    def __init__(self, model: Any, seen: Sequence[tuple[Any, Any]]) -> None:
        self.model, self.seen, self.parameters = model, seen, model.parameters

    def __call__(self, **inputs: Any) -> Any:
        ids = inputs["input_ids"]
        known = (outputs for past, outputs in self.seen if torch.equal(past, ids))
        found = next(known, None)
        return self.model(**inputs) if found is None else found


def apart(trainer: Any, batch: Batch, seen: Sequence[tuple[Any, Any]]) -> float:
    """How far the kept reference is from the policy in a batch: mean absolute difference of an answer's
    log-probabilities, in nats per token. Nothing is computed that `seen` has."""
    inputs = batch.inputs
    with torch.no_grad():
        now = trainer.reference_log_probs(_Again(trainer.model, seen), inputs)
    then = torch.stack([inputs[column] for column in trainer.reference_columns]).to(now.device)
    masks = [inputs[name] for name in ("completion_mask", "KL_completion_mask") if name in inputs]
    tokens = sum(int(mask[:, 1:].sum()) for mask in masks[: 2 if len(now) > 1 else 1])
    return float((now.double() - then.double()).abs().sum()) / max(tokens, 1)


def setting_of(world: Any) -> str:
    """What rounds a figure otherwise: the processor, its threads, and the packages that compute it. A sum of 200
    log-probabilities of the lab model differs by 3e-4 between AVX512 and AVX2.

    Args:
        world: accelerate's state of the processes.
    """
    kind = world.device.type
    chip = torch.cuda.get_device_name(world.device) if kind == "cuda" else _cpu()
    packages = [f"{name} {_version(name)}" for name in _COMPUTE]
    return ", ".join([kind, chip, *packages, f"{world.num_processes} processes"])


def _cpu() -> str:
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def precision_of(trainer: Any) -> str:
    """The coarsest that the model computes in."""
    config = getattr(trainer.model.config, "quantization_config", None)
    bits = getattr(trainer.model, "is_loaded_in_4bit", False), getattr(trainer.model, "is_loaded_in_8bit", False)
    if config is not None or any(bits):
        return "8-bit" if bits[1] else "4-bit"
    if trainer.args.fp16 or trainer.args.bf16:
        return "float16" if trainer.args.fp16 else "bfloat16"
    kinds = {str(p.dtype).removeprefix("torch.") for p in trainer.model.parameters() if p.is_floating_point()}
    return next((kind for kind in ("float16", "bfloat16") if kind in kinds), "float32")
