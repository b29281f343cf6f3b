"""The processes that came up, and whether they are those that were asked for: some launches start one in silence."""

from __future__ import annotations

from datetime import timedelta
from types import MethodType
from typing import TYPE_CHECKING, Any

from align.errors import AlignError, Exit
from align.run_folder.launch import Launch

if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import Trainer

WAIT = timedelta(hours=24)  # for the first process, which measures and saves: NCCL gives up after ten minutes


def meet(launch: Launch) -> PartialState:
    """Meet the other processes.

    Raises:
        AlignError: another number came up than was asked for; then the batch is not what the recipe says.
    """
    import torch
    from accelerate import InitProcessGroupKwargs, PartialState

    patience = InitProcessGroupKwargs(timeout=WAIT).to_kwargs() if launch.processes > 1 else {}
    state = PartialState(cpu=not torch.cuda.is_available(), **patience)
    assert_number(launch, state.num_processes)
    return state


def assert_number(launch: Launch, processes: int) -> None:
    """Raises AlignError where another number of processes is at work."""
    if processes != launch.processes:
        raise another(f"{launch.processes} processes were requested, but {processes} started")


def cast(trainer: Trainer) -> None:
    """Have a trainer's model compute in bfloat16 as accelerate has it under DDP; not all engines do."""
    import torch
    from accelerate.utils import convert_outputs_to_fp32

    autocast = torch.autocast(trainer.accelerator.device.type, dtype=torch.bfloat16)
    model: Any = trainer.model
    model._original_forward = model.forward
    inner = getattr(model.forward, "__func__", None)  # a function alone: `unwrap_model` binds what it finds inside
    forward = convert_outputs_to_fp32(autocast(model.forward if inner is None else inner))
    model.forward = forward if inner is None else MethodType(forward, model)


def another(what: str) -> AlignError:
    """The error of a launch that is not what was asked for."""
    return AlignError(what, "see child.log in the run folder", exit=Exit.MACHINE)
