"""Memory that has run out: how that is recognized, and what is told of it. No torch."""

from __future__ import annotations

import resource

from align.errors import AlignError, Exit, OutOfMemory
from align.parameterization import chain
from align.run_folder.records import Ticket


def ran_out(error: Exception) -> bool:
    """Whether an error is that of a GPU, of torch's own memory on a CPU, or of Python."""
    text = str(error).lower()
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    of_onednn = limited and "could not create a primitive" in text  # which says no more of it
    told = any(words in text for words in ("out of memory", "can't allocate memory", "cannot allocate memory"))
    return isinstance(error, MemoryError) or told or of_onednn


def failure(ticket: Ticket, step: int | None = None) -> AlignError:
    """What is told of a stage.

    Args:
        step: that the memory ran out in, of one that trained.
    """
    doubled = "gradient_accumulation_steps"
    if "steps_per_generation" in ticket.training:  # a rollout stays as large as it was
        doubled = f"{doubled} and steps_per_generation"
    ways = [f"halve training.per_device_train_batch_size and double {doubled}", "turn gradient_checkpointing on"]
    if not chain.Layer.of(ticket.parameterization, ticket.stage).quantized:
        ways.append("use qlora")
    remedy = f"{', '.join(ways[:-1])}, or {ways[-1]}"
    what = f"stage '{ticket.stage}' ran out of memory"
    if step is None:
        return AlignError(what, remedy, exit=Exit.STAGE_FAILED)
    return OutOfMemory(what, remedy, step, Exit.STAGE_FAILED)
