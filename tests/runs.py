"""Small real runs of the lab for the end-to-end tests, through the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ALIGN = (sys.executable, "-m", "align")

RECIPE = """\
name: small
seed: 3
model: {base: lab, dtype: bfloat16}
pipeline: sft_dpo
parameterization: {method: qlora}
replay: {data: lab/general, ratio: 0.25}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 96}
    training: {learning_rate: 1.0e-3, max_steps: 12, per_device_train_batch_size: 8, save_steps: 3, logging_steps: 1}
  dpo:
    data: {source: lab/helpdesk_preferences, limit: 64}
    training: {learning_rate: 2.0e-4, max_steps: 8, per_device_train_batch_size: 4, save_steps: 2, logging_steps: 1}
"""


def write(folder: Path, text: str = RECIPE) -> Path:
    """A recipe file."""
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def command(recipe: Path, run: Path, *arguments: str) -> list[str]:
    return [*ALIGN, "run", str(recipe), "--run-dir", str(run), *arguments]


def align(*arguments: str, cwd: Path | None = None, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command to its end and check its exit code."""
    done = subprocess.run([*ALIGN, *arguments], capture_output=True, text=True, cwd=cwd, input=stdin, check=False)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def run(recipe: Path, folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`align run` of a recipe into a folder."""
    return align("run", str(recipe), "--run-dir", str(folder), *arguments, code=code)


def outcome(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / "stages" / stage / "outcome.json").read_text(encoding="utf-8"))


def weights(folder: Path) -> dict[str, str]:
    """Hash of the final weights of each stage, as its outcome recorded it and as the file is."""
    import hashlib

    found = {}
    for file in sorted(folder.glob("stages/*/model/*.safetensors")):
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        stage = file.parents[1].name
        assert outcome(folder, stage)["artifacts"][f"model/{file.name}"]["sha256"] == sha256
        found[f"{stage}/{file.name}"] = sha256
    return found


def last_step(folder: Path, stage: str) -> int:
    """The last step that a stage has logged, -1 before the first."""
    try:
        lines = (folder / "stages" / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, IndexError, KeyError):
        return -1


def started(recipe: Path, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`align run` in the background."""
    return subprocess.Popen(
        command(recipe, folder, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 180) -> None:
    """Wait until something is so; the process must not end before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early:\n{process.communicate()[0]}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


def environment(**values: str) -> dict[str, str]:
    return {**os.environ, **values}
