"""What a stage took: time, memory, and the packages that it ran on."""

from __future__ import annotations

import importlib.metadata
import resource
import sys
import time
from dataclasses import dataclass

import torch

PACKAGES = ("align-suite", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


@dataclass(frozen=True)
class Clock:
    """Wall and CPU seconds since it was made."""

    wall: float
    cpu: float

    @classmethod
    def start(cls) -> Clock:
        return cls(time.monotonic(), time.process_time())

    def seconds(self) -> tuple[float, float]:
        return time.monotonic() - self.wall, time.process_time() - self.cpu


def peak_memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"python": ".".join(str(part) for part in sys.version_info[:3])}
