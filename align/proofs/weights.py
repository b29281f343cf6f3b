"""The trained weights as hashes, tensor by tensor, and whether all processes hold the same.

No second copy of the model is made: one tensor at a time is whole in memory, and one is read from the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from align.errors import AlignError, Exit
from align.policy.partitioned import whole
from align.run_folder import files
from align.run_folder.proofs import RanksAgree

T = TypeVar("T")


@dataclass(frozen=True)
class Digest:
    """One tensor: its shape, its type as torch names it, and SHA-256 of its bytes, row by row."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


def digest(tensor: torch.Tensor) -> Digest:
    """Of one tensor, wherever it is."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Digest(tuple(tensor.shape), dtype, hashlib.sha256(flat.numpy().data).hexdigest())


def trained(model: torch.nn.Module) -> dict[str, Digest]:
    """The weights that a model trains, by their names in it. All processes call it: parts of one are gathered."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with whole(parameter) as tensor:
                found[name] = digest(tensor)
    return found


def agree(digests: Mapping[str, Digest], world: Any) -> RanksAgree | None:
    """That all processes have the same; None of one process. All call it.

    Args:
        digests: of this process's trained weights.
        world: accelerate's state of the processes.

    Raises:
        AlignError: they differ; in all processes alike.
    """
    if world.num_processes == 1:
        return None
    rows = every([(name, one.sha256) for name, one in digests.items()], world)
    names = list(digests)
    if any([name for name, _ in row] != names for row in rows):
        raise _apart("the processes do not train weights of the same names")
    differ = [
        (place, process) for place, own in enumerate(rows[0]) for process, row in enumerate(rows) if row[place] != own
    ]
    if differ:
        place, process = differ[0]
        count = len({place for place, _ in differ})
        of = f"{count:,} of {len(names):,} trained tensors differ between processes"
        raise _apart(f"{of}, first '{names[place]}' in process {process} from that in process 0")
    sha256 = files.digest({name: one.sha256 for name, one in digests.items()})
    return RanksAgree(processes=world.num_processes, tensors=len(names), sha256=sha256)


def every(own: T, world: Any) -> list[T]:
    """What each process has, in the order of processes. All call it."""
    if world.num_processes == 1:
        return [own]
    found: list[Any] = [None] * world.num_processes
    torch.distributed.all_gather_object(found, own)
    return found


def _apart(how: str) -> AlignError:
    return AlignError(
        f"training ended with different weights in different processes: {how}",
        "each process has trained alone, or one missed an update: look at what the stage's own code changes in one "
        "process only, and at log.txt and log.rank1.txt in the folder of the stage; nothing was saved",
        exit=Exit.STAGE_FAILED,
    )
