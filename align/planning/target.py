"""The device that a plan is for: how much memory it has, and how a stage computes there. No torch."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import AlignError

BLOCK = 512  # bytes; CUDA's caching allocator rounds every tensor up to as many
CONTEXT = 600_000_000  # bytes; of the CUDA context and its libraries, beside all tensors
PROCESS = 600_000_000  # bytes; of Python and its libraries in main memory
FRAGMENTS = 0.03  # of the peak; what the caching allocator reserves and cannot use


@dataclass(frozen=True)
class Target:
    """Where a stage is to run.

    Attributes:
        name: in words.
        gpu: whether it is one. A stage computes in bfloat16 there, and with checkpointing, unless the recipe says not.
        memory: bytes that it has; None where that is not known.
    """

    name: str
    gpu: bool
    memory: int | None

    @property
    def block(self) -> int:
        """Bytes that a tensor is rounded up to."""
        return BLOCK if self.gpu else 1

    def taken(self, peak: int) -> int:
        """Bytes of the device that a peak of tensors takes."""
        return round(peak * (1 + FRAGMENTS)) + CONTEXT if self.gpu else peak + PROCESS

    def fits(self, peak: int) -> bool | None:
        """Whether a peak of tensors fits; None where that is not known."""
        return None if self.memory is None else self.taken(peak) <= self.memory

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """The training arguments that a stage takes there if the recipe does not give them."""
        if not self.gpu:
            return {}
        bf16 = {} if given.get("fp16") else {"bf16": True}
        return {"gradient_checkpointing": True, **bf16}


def asked(size: str) -> Target:
    """A GPU of that memory: `24GB`, `80GiB`; GB as on its label, which counts 2^30 bytes.

    Raises:
        AlignError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*(?:GB|GiB|G)?\s*", size, re.IGNORECASE)
    if not found or not float(found[1]):
        raise AlignError(f"--gpu {size}: this is no amount of memory", "write for example --gpu 24GB")
    return Target(f"a GPU of {found[1]} GB", gpu=True, memory=round(float(found[1]) * 2**30))


def here() -> Target:
    """The first GPU of this machine, by its driver; without one, its processor and its main memory."""
    if program := shutil.which("nvidia-smi"):
        query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        said: list[str] = []
        with suppress(OSError, subprocess.TimeoutExpired):  # of a driver that hangs
            said = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20).stdout.splitlines()
        if said and "," in said[0]:
            name, _, size = said[0].rpartition(",")
            if size.strip().isdigit():
                return Target(name.strip(), gpu=True, memory=int(size) * 2**20)
    return Target("the CPU of this machine", gpu=False, memory=_main_memory())


def _main_memory() -> int | None:
    """Bytes of main memory, or fewer where a container limits them."""
    found = [size for size in (_limit(Path("/sys/fs/cgroup/memory.max")), _total()) if size]
    return min(found, default=None)


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _total() -> int | None:
    try:
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024
