"""Distributed data parallel: each process holds the whole model and a part of each batch; one process, all of it.

The first process holds whole weights and saves them; nothing has to be gathered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align.engines import command, world
from align.run_folder.launch import Launch, Place

if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import Trainer


def missing(launch: Launch) -> tuple[str, str] | None:
    """Nothing: it comes with torch."""
    return None


def configuration(launch: Launch, place: Place) -> dict[str, Any] | None:
    """Of accelerate, for several processes. On a CPU, too, it is MULTI_GPU: MULTI_CPU starts one and says nothing."""
    return command.configured("MULTI_GPU", launch, place) if launch.processes > 1 else None


def begin(launch: Launch) -> PartialState:
    """Meet the other processes.

    Raises:
        AlignError: another number came up than was asked for; then the batch is not what the recipe says.
    """
    return world.meet(launch)


def arguments(launch: Launch) -> dict[str, Any]:
    """It needs none."""
    return {}


def prepare(trainer: Trainer) -> None:
    """It needs nothing more."""


def prove(trainer: Trainer, launch: Launch) -> None:
    """Raises AlignError where gradients would not be exchanged among all processes."""
    from torch.nn.parallel import DistributedDataParallel

    accelerator = trainer.accelerator
    world.assert_number(launch, accelerator.num_processes)
    if launch.processes == 1:
        return
    kind, wrapped = accelerator.distributed_type.value, trainer.model_wrapped
    if not kind.startswith("MULTI_") or not isinstance(wrapped, DistributedDataParallel):
        raise world.another(
            f"DDP was requested, but the trainer is of the type {kind} and trains a {type(wrapped).__name__}"
        )


def left_out(trainer: Trainer) -> bool:
    """It makes every update."""
    return False


def whole(trainer: Trainer) -> None:
    """Take DDP's wrapper off, and autocast's."""
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
