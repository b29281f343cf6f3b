"""Asks a process with torch to trace stages, and keeps what it found for the same question. No torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from align.errors import AlignError
from align.planning.records import Asked, Traced
from align.preflight import arithmetic
from align.run_folder import files

PATIENCE = 120  # seconds for a stage; most take five
METHOD = 1  # raised when the same question gets another answer
_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "align-suite")
_OWN = {"fingerprint", "run_name", "seed", "warnings", "probes", "prompts", "program_path", "stage"}
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


def cache() -> Path:
    """Where answers are kept: $XDG_CACHE_HOME/align/plans, else ~/.cache/align/plans."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "align" / "plans"


def trace(folder: Path, asked: Sequence[Asked]) -> dict[str, Traced]:
    """What tracing each stage found, by its id.

    Args:
        folder: that the rows of the tickets are in.
    """
    found: dict[str, Traced] = {}
    missing = []
    for one in asked:
        known = _known(_key(one))
        if known is None:
            missing.append(one)
        else:
            found[one.ticket.stage] = known
    while missing:  # a stage that ends its process takes no other with it
        made, why = _child(folder, missing)
        if not made:
            id = missing.pop(0).ticket.stage
            found[id] = Traced(stage=id, failed=why)
        for one in [one for one in missing if one.ticket.stage in made]:
            answer = made[one.ticket.stage]
            if answer.failed is None:
                _keep(_key(one), answer)
            found[one.ticket.stage] = answer
            missing.remove(one)
    return found


def _child(folder: Path, asked: Sequence[Asked]) -> tuple[dict[str, Traced], str]:
    """What it said of the first stages, until it ended or was silent for too long; and why it said nothing."""
    files.write_json(folder / "asked.json", {"stages": [one.model_dump(mode="json") for one in asked]})
    # the same whether there is a GPU or not: what one would change is said in the question
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-P", "-m", "align.planning.trace", str(folder)]
    found: dict[str, Traced] = {}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(words, env={**os.environ, **quiet}, stdout=subprocess.PIPE, stderr=log, text=True)
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        assert process.stdout is not None
        clock = threading.Timer(PATIENCE, end)
        clock.start()
        for line in process.stdout:
            try:
                one = Traced.model_validate_json(line)
            except ValidationError:  # what a library prints
                continue
            found[one.stage] = one
            clock.cancel()
            clock = threading.Timer(PATIENCE, end)
            clock.start()
        process.wait()
        clock.cancel()
        log.seek(0)
        last = (log.read().strip().splitlines() or ["it ended without a word"])[-1]
    return found, f"it took longer than {PATIENCE} s" if late.is_set() else last


def _key(asked: Asked) -> str:
    """Of all that the answer depends on."""
    question = asked.model_dump(mode="json")
    question["ticket"] = {name: value for name, value in question["ticket"].items() if name not in _OWN}
    base = Path(asked.ticket.policy.base.path)
    held = {name: files.file_sha256(base / name) for name in _FILES if (base / name).is_file()}
    versions = {name: _version(name) for name in _LIBRARIES}
    return files.digest([METHOD, question, held, versions, _processor()])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """What decides whether a stage computes in bfloat16 on a CPU."""
    return " ".join(arithmetic.flags()) or platform.processor()


def _known(key: str) -> Traced | None:
    try:
        found = Traced.model_validate(files.read_object(cache() / f"{key}.json"))
    except (ValidationError, OSError, AlignError):
        return None
    return found if found.moments else None


def _keep(key: str, answer: Traced) -> None:
    try:
        files.write_json(cache() / f"{key}.json", answer.model_dump(mode="json"))
    except OSError:  # a home that cannot be written to costs a few seconds the next time
        return
