"""CPU seconds of commands with all their descendants, and the lines that every benchmark prints.

CPU time (user + system) rather than wall time, one thread, and the two sides in turn: what else a machine is doing
then disturbs a comparison least.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def cpu_seconds(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> float:
    """Run a command in `folder` and return the user and system seconds of it and of all its descendants.

    What it prints goes into `folder`/log.txt. Descendants count once their own parents have waited for them.

    Raises:
        SystemExit: it failed; the end of its log is shown.
    """
    settings = {**os.environ, **ONE_THREAD, **OFFLINE, **(environment or {})}
    before = _children()
    log = folder / "log.txt"
    with log.open("ab") as out:
        code = subprocess.run(command, cwd=folder, env=settings, stdout=out, stderr=out).returncode
    if code != 0:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"{tail}\n{' '.join(command)} ended with code {code}")
    return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def heading(title: str) -> None:
    """What is compared, when and on what."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    print(f"{title}\n{now} UTC, {_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}")
    print(f"one thread, CPU seconds (user + system); load of the machine at the start: {os.getloadavg()[0]:.1f}\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    return (name or platform.processor() or platform.machine()) + (", AVX512-BF16" if "avx512_bf16" in text else "")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, and the range behind it."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def verdict(what: str, value: float, target: float) -> None:
    """The line that says whether a target was met; all targets are upper bounds."""
    print(f"target {what} <= {target:g}: {value:.3g}, {'met' if value <= target else 'NOT met'}", flush=True)


def one_thread() -> None:
    """The same settings for this process; call it before torch is imported."""
    os.environ.update({**ONE_THREAD, **OFFLINE})


def process_seconds() -> float:
    """CPU seconds of this process so far."""
    return time.process_time()


def quiet() -> None:
    """No progress bars and chatter of the training stack in this process."""
    import warnings

    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging

    disable_progress_bar()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    os.environ["TQDM_DISABLE"] = "1"
    warnings.filterwarnings("ignore")
