"""Asks a process with torch to trace stages, and keeps what it found for the same question. No torch."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from align.planning.records import Asked, Traced
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
    found = {one.ticket.stage: _known(_key(one)) for one in asked}
    missing = [one for one in asked if found[one.ticket.stage] is None]
    made = _child(folder, missing) if missing else {}
    for one in missing:
        id = one.ticket.stage
        answer = made.get(id) or Traced(stage=id, failed=f"the trace broke off, or took longer than {PATIENCE} s")
        if answer.failed is None:
            _keep(_key(one), answer)
        found[id] = answer
    return {id: answer for id, answer in found.items() if answer is not None}


def _child(folder: Path, asked: Sequence[Asked]) -> dict[str, Traced]:
    files.write_json(folder / "asked.json", {"stages": [one.model_dump(mode="json") for one in asked]})
    # the same on every machine: what a GPU would change is said in the question
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-P", "-m", "align.planning.trace", str(folder)]
    environment, limit = {**os.environ, **quiet}, PATIENCE * len(asked)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(words, env=environment, stdout=out, stderr=log, check=False, timeout=limit)
        out.seek(0)
        said = out.read()
    found = {}
    for line in said.splitlines():
        try:
            one = Traced.model_validate_json(line)
        except ValidationError:  # what a library prints
            continue
        found[one.stage] = one
    return found


def _key(asked: Asked) -> str:
    """Of all that the answer depends on."""
    question = asked.model_dump(mode="json")
    question["ticket"] = {name: value for name, value in question["ticket"].items() if name not in _OWN}
    base = Path(asked.ticket.policy.base.path)
    held = {name: files.file_sha256(base / name) for name in _FILES if (base / name).is_file()}
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return files.digest([METHOD, question, held, versions])


def _known(key: str) -> Traced | None:
    try:
        return Traced.model_validate(files.read_object(cache() / f"{key}.json"))
    except ValidationError:
        return None


def _keep(key: str, answer: Traced) -> None:
    try:
        files.write_json(cache() / f"{key}.json", answer.model_dump(mode="json"))
    except OSError:  # a home that cannot be written to costs a few seconds the next time
        return
