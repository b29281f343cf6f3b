"""The machine: cores, memory, disk, compiler, GPUs and what of the stack can use them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.doctor.finding import Finding

ROOM = 2 * 10**9  # bytes that a run of the lab and its packages' caches may take
MEMORY = 4 * 10**9
PATIENCE = 120.0  # seconds for the stack to be imported
# Asked in a process of its own: an import may crash it.
_ASKED = """\
import json
found = {}
try:
    import torch
    found["torch"] = torch.__version__
    found["cuda"] = torch.version.cuda or torch.version.hip or ""
    found["bf16"] = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    found["gpus"] = [
        [torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory]
        for i in range(torch.cuda.device_count())
    ] if torch.cuda.is_available() else []
except Exception as error:
    found["torch_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
try:
    import bitsandbytes
    from bitsandbytes.cextension import lib
    found["bitsandbytes"] = bitsandbytes.__version__
    found["library"] = type(lib).__name__
except Exception as error:
    found["bitsandbytes_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print("FOUND" + json.dumps(found))
"""


def look(folder: Path) -> Iterator[Finding]:
    """What there is; `folder` is where runs would go."""
    yield Finding("system", "ok", f"{platform.system()} {platform.release()}, {os.cpu_count()} cores")
    yield from _memory()
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free in {folder}"
    yield Finding("disk", "ok", text) if free > ROOM else Finding("disk", "fault", text, "free some space")
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler:
        yield Finding("compiler", "ok", compiler)
    else:
        yield Finding("compiler", "note", "no C++ compiler; only for `torch_compile` and DeepSpeed", "apt install g++")
    if not shutil.which("make"):
        yield Finding("make", "note", "not installed; `make demo` needs it, `align run` does not", "apt install make")
    yield from _stack(_driver())


def _memory() -> Iterator[Finding]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return
    text = f"{total / 1e9:.1f} GB"
    enough = total > MEMORY
    yield Finding("memory", "ok" if enough else "note", text, "" if enough else "4 GB are enough for the lab model")


def _driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None


def _stack(driver: str | None) -> Iterator[Finding]:
    """torch and bitsandbytes, as they come up."""
    found = _asked()
    if "torch" not in found:
        said = found.get("torch_error", "it did not come up")
        if "No module named" in said:  # told among the packages
            return
        yield Finding("torch", "fault", f"cannot be imported: {said}", "pip install --force-reinstall torch")
        return
    gpus = found["gpus"]
    for name, memory in gpus:
        precision = "bfloat16" if found["bf16"] else "no bfloat16: use `fp16`"
        yield Finding("GPU", "ok", f"{name}, {memory / 1e9:.0f} GB, {precision}, CUDA {found['cuda']}, driver {driver}")
    if not gpus and driver:
        what = f"driver {driver}, but torch {found['torch']} sees no GPU"
        remedy = "pip install torch --index-url https://download.pytorch.org/whl/cu128"
        yield Finding("GPU", "fault", what, "" if found["cuda"] else remedy)
    elif not gpus:
        yield Finding("GPU", "note", f"none; torch {found['torch']} trains on the CPU")
    if "bitsandbytes_error" in found:
        said = found["bitsandbytes_error"]
        if "No module named" not in said:
            yield Finding("bitsandbytes", "fault", f"cannot be imported: {said}", "pip install -U bitsandbytes")
    elif found.get("library", "").startswith("Error") or (gpus and "Cuda" not in found.get("library", "")):
        what = f"its native library did not load ({found['library']})"
        yield Finding("bitsandbytes", "fault" if gpus else "note", what, "python -m bitsandbytes says why")
    else:
        yield Finding("bitsandbytes", "ok", f"{found['library']}")


def _asked() -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _ASKED], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return {"torch_error": f"it did not come up within {PATIENCE:.0f} s"}
    _, marked, text = done.stdout.rpartition("FOUND")
    found: dict[str, Any] = json.loads(text) if marked else {"torch_error": f"it ended with code {done.returncode}"}
    return found
