"""Whether this machine computes a run in a precision that its processor is slow at. No torch."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from align.recipe.plan import StagePlan

CPUINFO: Final = Path("/proc/cpuinfo")
DRIVERS: Final = (Path("/dev/nvidiactl"), Path("/dev/kfd"))  # of NVIDIA's GPUs, of AMD's
COMPUTED: Final = "bnb_4bit_compute_dtype"
# One of these is enough for oneDNN to multiply such matrices; without, torch does so element by element. CPUs with
# `avx_ifma` have `avx_ne_convert` too, which Linux does not show.
_FAST: Final = {"bfloat16": {"avx512bw", "avx_ifma"}, "float16": {"avx512_fp16", "avx_ifma"}}


def notes(plans: Sequence[StagePlan], dtype: str, saved: dict[str, Any] | None) -> list[str]:
    """A note where stages would compute in half precision on a processor that is slow at it.

    Args:
        dtype: the recipe's `model.dtype`.
        saved: how the base is saved quantised, by its config; None for floats.
    """
    has = _flags_without_gpu()
    slow: dict[str, tuple[str, list[str]]] = {}
    for plan in plans:
        precision, remedy = _precision(plan, dtype, saved)
        if has and remedy and not _FAST.get(precision, has) & has:
            slow[plan.id] = (precision, remedy)
    if not slow:
        return []
    said = f"stage {next(iter(slow))} computes" if len(slow) == 1 else f"stages {', '.join(slow)} compute"
    precisions = " or ".join(sorted({precision for precision, _ in slow.values()}))
    remedies = " and ".join(f"`{key}`" for key in dict.fromkeys(key for _, keys in slow.values() for key in keys))
    return [
        f"{said} in {precisions}, and this machine has no GPU and a CPU that is up to ten times slower at that than at "
        f"float32: {remedies}"
    ]


def _precision(plan: StagePlan, dtype: str, saved: dict[str, Any] | None) -> tuple[str, list[str]]:
    """What most of its products are computed in, and the keys that would make it float32."""
    if plan.training.get("fp16"):  # needs a GPU, which is told elsewhere
        return "float16", []
    plain = dtype == "float32" or (plan.trains_base and dtype == "auto")
    whole = [] if plain else ["model.dtype: float32"]
    if plan.training.get("bf16"):
        return "bfloat16", ["bf16: false", *whole]
    keys = getattr(plan.method_keys, "quantization", None)
    if keys is not None and keys.bits == 4:
        own = [f"{COMPUTED}: float32"] if COMPUTED in keys.model_fields_set else []
        return getattr(keys, COMPUTED), [*own, *whole]
    if saved is not None and COMPUTED in saved and not plan.trains_base:
        said = f"parameterization: {{method: qlora, quantization: {{{COMPUTED}: float32}}}}"
        return str(saved[COMPUTED]), [said]  # as the base says: only a method of 4 bits can say otherwise
    return ("float32" if plain else "bfloat16" if dtype == "auto" else dtype), whole


def _flags_without_gpu() -> set[str]:
    """What the processor can do, where nothing else computes; known of x86 under Linux alone."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = visible is not None and visible.strip() in ("", "-1")
    gpu = shutil.which("nvidia-smi") or any(path.exists() for path in DRIVERS)
    if platform.machine() not in ("x86_64", "AMD64") or (gpu and not hidden):
        return set()
    return set(flags())


def flags() -> list[str]:
    """The instructions that the processor has, as Linux names them on x86; elsewhere none."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")), [])
