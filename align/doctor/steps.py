"""A step of the lab model in each precision and with each engine, by the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.doctor import packages
from align.doctor.finding import Finding

PATIENCE = 300.0


@dataclass(frozen=True)
class Way:
    """A way to train.

    Attributes:
        keys: of the recipe, beside those that all have.
        needs: distributions that it cannot do without.
    """

    name: str
    keys: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


_FLOAT32 = {"model": {"base": "lab", "dtype": "float32"}, "parameterization": {"method": "lora"}}
WAYS = (
    Way("float32", _FLOAT32),
    Way("bfloat16", {"model": {"base": "lab", "dtype": "bfloat16"}, "parameterization": {"method": "lora"}}),
    Way("4-bit", {"parameterization": {"method": "qlora"}}, ("bitsandbytes",)),
    Way("ddp, 2 processes", {**_FLOAT32, "launch": {"processes": 2}}),
    Way("fsdp, 2 processes", {**_FLOAT32, "launch": {"processes": 2, "engine": "fsdp"}}),
    Way("ZeRO-2, 2 processes", {**_FLOAT32, "launch": {"processes": 2, "engine": "deepspeed"}}, ("deepspeed",)),
    Way(
        "ZeRO-3, 2 processes",
        {**_FLOAT32, "launch": {"processes": 2, "engine": "deepspeed", "zero_stage": 3}},
        ("deepspeed",),
    ),
)
_COMMON: dict[str, Any] = {
    "name": "doctor",
    "model": {"base": "lab"},
    "forgetting": {"probes": "none"},
    "stages": {
        "sft": {
            "data": {"source": "lab/helpdesk", "limit": 8},
            "training": {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-4},
        }
    },
}


def look(folder: Path, gpus: int) -> Iterator[Finding]:
    """Each way that can be tried here.

    Args:
        folder: an empty one, for the runs.
        gpus: how many there are; more than one process need as many, or none.
    """
    for number, way in enumerate(WAYS):
        processes = way.keys.get("launch", {}).get("processes", 1)
        if any(packages.installed(name) is None for name in way.needs):
            yield Finding(way.name, "note", f"not tried: {way.needs[0]} is not installed")
        elif 0 < gpus < processes:
            yield Finding(way.name, "note", f"not tried: it needs {processes} GPUs")
        else:
            yield _tried(way, folder / str(number))


def _tried(way: Way, folder: Path) -> Finding:
    folder.mkdir(parents=True)
    (folder / "doctor.yaml").write_text(json.dumps({**_COMMON, **way.keys}), encoding="utf-8")  # JSON is YAML
    words = [sys.executable, "-P", "-m", "align", "run", "doctor.yaml", "--run-dir", "run"]
    began = time.monotonic()
    settings = {**os.environ, "COLUMNS": "1000"}
    try:
        done = subprocess.run(
            words, cwd=folder, env=settings, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(way.name, "fault", f"a step was not done after {PATIENCE:.0f} s", "try it alone: align run")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("error", "  -> "))] or ["it failed"]
        return Finding(way.name, "fault", lines[0].removeprefix("error "), lines[-1].removeprefix("  -> "))
    return Finding(way.name, "ok", f"a step was made, saved and read again in {time.monotonic() - began:.0f} s")
