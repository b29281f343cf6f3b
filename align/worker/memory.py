"""Memory that has run out: how that is recognized, and what is told of it. No torch."""

from __future__ import annotations

import resource
from pathlib import PurePath

from align.errors import AlignError, Exit, OutOfMemory
from align.parameterization import chain
from align.run_folder.records import Ticket

_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "_alloc_failed")
_ONEDNN = "could not create a primitive"  # where a limit is set; it says no more of it


def ran_out(error: Exception) -> bool:
    """Whether an error is that of a GPU, of torch's own memory on a CPU, or of Python."""
    if isinstance(error, AlignError):  # it may quote a text that speaks of memory
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    text = str(error).lower()
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    told = any(words in text for words in _WORDS) or (limited and _ONEDNN in text)
    return isinstance(error, RuntimeError | OSError) and told


def failure(ticket: Ticket, where: tuple[str, int] | None = None) -> AlignError:
    """What is told of a stage.

    Args:
        where: the phase and the last step, of one that trained.
    """
    training, what = ticket.training, f"stage '{ticket.stage}' ran out of memory"
    qlora = [] if chain.Layer.of(ticket.parameterization, ticket.stage).quantized else ["use qlora"]
    if where is None:
        what += " before or after its training"
        ways = [*qlora, "choose a smaller base", "end what else takes memory there"]
        return AlignError(what, _either(ways), exit=Exit.STAGE_FAILED)
    ways = [] if training.get("gradient_checkpointing") else ["write `gradient_checkpointing: true`"]
    ways += ["lower `max_length`"] if "max_length" in training else []
    ways += ["lower `steps_per_generation`"] if "steps_per_generation" in training else []
    rows = training.get("per_device_train_batch_size", 1)
    ways += [f"lower `per_device_train_batch_size`, which is {rows}"] if rows > 1 else []
    begun = int(PurePath(ticket.resume_from).name.rpartition("-")[2]) if ticket.resume_from else 0
    phase, step = where
    return OutOfMemory(what, _either([*ways, *qlora]), phase, max(step, begun), Exit.STAGE_FAILED)


def _either(ways: list[str]) -> str:
    return ", or ".join(filter(None, (", ".join(ways[:-1]), ways[-1])))
