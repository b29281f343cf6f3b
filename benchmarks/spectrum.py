"""Spectrum's arithmetic against `torch.linalg.svdvals`, and what a scan needs of memory and time.

    python -m benchmarks.spectrum      options: --times N, --quick (small shapes: whether it works, not a figure)

Each matrix is float32 with a bulk of noise and directions above it. "best" is svdvals of the tall orientation, which is
the quicker one; "as stored" is the call of the published program, svdvals of the weight as the file has it. All give
the same signal-to-noise ratios by both estimators. Memory is the growth of a process that scans a file of one matrix,
above what it has after its imports, in units of that matrix in float32. A cached scan is a new process over a file of
224 matrices, as a model of 7B has them, all known.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import clock

if TYPE_CHECKING:
    import torch

# shape, and the least factor over svdvals at its best and as stored
SHAPES: list[tuple[tuple[int, int], float | None, float | None]] = [
    ((4096, 4096), 2.0, None),
    ((2048, 7168), 1.6, None),
    ((4096, 14336), None, 6.0),
]
QUICK: list[tuple[tuple[int, int], float | None, float | None]] = [
    ((512, 512), 2.0, None),
    ((256, 896), 1.6, None),
    ((512, 1792), None, 6.0),
]
MEMORY, CACHED = 5.5, 1.0
# The high-water mark of this process's own memory: ru_maxrss keeps that of the parent it was forked from.
MEMORY_PROGRAM = """
import re, sys
from pathlib import Path
import numpy, scipy.integrate, scipy.linalg, scipy.optimize, torch
from align.spectrum import scan
def kib(field):
    return int(re.search(rf"{field}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = kib("VmRSS")
scan.scan(Path(sys.argv[1]), workers=1)
print((kib("VmHWM") - before) * 1024)
"""
CACHED_PROGRAM = """
import sys
from pathlib import Path
from align.spectrum import scan
assert len(scan.scan(Path(sys.argv[1]), workers=1)) == 224
assert sys.argv[2] == "new" or "torch" not in sys.modules
"""


def weight(shape: tuple[int, int]) -> torch.Tensor:
    """Noise, and 40 directions above its edge."""
    import torch

    made = torch.Generator().manual_seed(0)
    bulk = torch.randn(shape, generator=made)
    left = torch.randn(shape[0], 40, generator=made) / sqrt(shape[0])
    right = torch.randn(40, shape[1], generator=made) / sqrt(shape[1])
    sizes = (sqrt(shape[0]) + sqrt(shape[1])) * (1 + 3 / torch.arange(1, 41))
    return bulk.add_((left * sizes) @ right).mul_(0.02)


def compare(shape: tuple[int, int], at_best: float | None, as_stored: float | None, times: int) -> None:
    """Seconds of each way in turn, and the largest difference of their ratios."""
    import numpy as np
    import torch

    from align.spectrum import noise

    w = weight(shape)
    tall = w if shape[0] >= shape[1] else w.T.contiguous()
    ways: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: noise.eigenvalues(noise.gram(w.numpy())),
        "best": lambda: torch.linalg.svdvals(tall).double().numpy() ** 2,
        "as stored": lambda: torch.linalg.svdvals(w).double().numpy() ** 2,
    }
    if shape[0] >= shape[1]:
        del ways["as stored"]  # the same call
    noise.measure(noise.eigenvalues(noise.gram(np.eye(8))), 8)  # imports scipy
    spent: dict[str, list[float]] = {way: [] for way in ways}
    ratios: dict[str, list[float]] = {}
    for _ in range(times):
        for way, squares in ways.items():
            start = clock.process_seconds()
            found = squares()
            ratios[way] = [noise.measure(found, max(shape), estimator).snr for estimator in noise.ESTIMATORS]
            spent[way].append(clock.process_seconds() - start)
    ours = ratios["ours"]
    apart = max(abs(a / b - 1) for way in ways for a, b in zip(ratios[way], ours, strict=True))
    seconds = ", ".join(f"{way} {clock.spread(each, 2)} s" for way, each in spent.items())
    label = f"{shape[0]} x {shape[1]}"
    print(f"{label:<13} {seconds}; snr {', '.join(f'{snr:.4g}' for snr in ours)}, largest difference {apart:.1e}")
    for way, factor in (("best", at_best), ("as stored", as_stored)):
        if factor:
            clock.verdict(f"{label}: ours / {way}", median(spent["ours"]) / median(spent[way]), 1 / factor)
    clock.verdict(f"{label}: largest relative difference of ratios", apart, 1e-4)


def memory(shape: tuple[int, int], folder: Path) -> None:
    """Scan a file of one matrix in a process of its own."""
    from safetensors.torch import save_file

    model = folder / f"{shape[0]}x{shape[1]}"
    model.mkdir()
    save_file({"model.layers.0.mlp.up_proj.weight": weight(shape)}, model / "model.safetensors")
    environment = {**os.environ, **clock.ONE_THREAD, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(model)]
    grown = int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    clock.verdict(f"{shape[0]} x {shape[1]}: growth / matrix in float32", grown / (4 * shape[0] * shape[1]), MEMORY)


def cached(folder: Path) -> None:
    """Scan 224 small matrices twice, each time in a new process."""
    import torch
    from safetensors.torch import save_file

    model = folder / "layers"
    model.mkdir()
    tensors = {f"model.layers.{n // 7}.mlp.p{n % 7}.weight": torch.randn(32, 64) for n in range(224)}
    save_file(tensors, model / "model.safetensors")
    environment = {"XDG_CACHE_HOME": str(folder / "cache")}
    first, again = (
        clock.cpu_seconds([sys.executable, "-c", CACHED_PROGRAM, str(model), how], folder, environment)
        for how in ("new", "known")
    )
    print(f"scan of 224 matrices of 32 x 64: {first:.2f} s")
    clock.verdict("cached scan, CPU seconds", again, CACHED)


def main() -> None:
    """Arithmetic, then memory, then the cache."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    clock.one_thread()
    clock.heading(f"spectrum: each way {asked.times} times")
    shapes = QUICK if asked.quick else SHAPES
    for shape, at_best, as_stored in shapes:
        compare(shape, at_best, as_stored, asked.times)
    with tempfile.TemporaryDirectory() as name:
        for shape, _, _ in shapes:
            memory(shape, Path(name))
        cached(Path(name))


if __name__ == "__main__":
    main()
