"""Whether this machine computes a run in a precision that its processor is slow at. No torch."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from align.recipe.plan import StagePlan

CPUINFO: Final = Path("/proc/cpuinfo")
_FAST: Final = "avx512bw"  # with it oneDNN multiplies bfloat16; without it torch does so element by element


def notes(plans: Sequence[StagePlan], dtype: str) -> list[str]:
    """A note where stages would compute in bfloat16 on a processor that cannot.

    Args:
        dtype: the recipe's `model.dtype`.
    """
    slow = [plan.id for plan in plans if _in_bfloat16(plan, dtype)]
    if not slow or not _slow_here():
        return []
    said = f"stage {slow[0]} computes" if len(slow) == 1 else f"stages {', '.join(slow)} compute"
    return [
        f"{said} in bfloat16, and this machine has no GPU and a CPU without AVX-512, on which that is up to ten times "
        "slower than float32: `model.dtype: float32`"
    ]


def _in_bfloat16(plan: StagePlan, dtype: str) -> bool:
    """Most of its products: those with dequantised weights, with the weights themselves, or under autocast."""
    if plan.training.get("bf16"):
        return True
    quantization = plan.method.quantization(plan.method_keys) or {}
    if "bnb_4bit_compute_dtype" in quantization:
        return bool(quantization["bnb_4bit_compute_dtype"] == "bfloat16")
    return dtype == "bfloat16" or (dtype == "auto" and not plan.trains_base)


def _slow_here() -> bool:
    """Known of x86 under Linux alone."""
    if platform.machine() not in ("x86_64", "AMD64") or shutil.which("nvidia-smi"):
        return False
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return bool(flags) and _FAST not in flags.split()
