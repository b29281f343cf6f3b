"""Memory that is free on this machine."""

from __future__ import annotations

from pathlib import Path


def free_memory() -> int:
    """Bytes of memory that a process may still take: of the machine, and of the container that it runs in."""
    import psutil  # type: ignore[import-untyped]  # carries no types; accelerate needs it

    free: int = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free
