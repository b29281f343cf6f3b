"""Small real runs of the lab for the end-to-end tests, through the real command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import warm

ALIGN = (sys.executable, "-m", "align")

RECIPE = """\
name: small
seed: 3
model: {base: lab, dtype: float32}
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

GATED = (
    RECIPE.replace("probes: none", "probes: lab, max_drop: 0.05, max_mean_drop: 0.0, on_violation: stop")
    .replace("learning_rate: 1.0e-3, max_steps: 12", "learning_rate: 1.0e-2, max_steps: 12")
    .replace("limit: 96}\n", "limit: 96}\n    eval_data: 16\n")
    .replace("ratio: 0.25", "ratio: 0.0")
)
RLHF = """\
name: small
seed: 3
model: {base: lab, dtype: float32}
pipeline: dpo_and_rlhf
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 96}
    training: {learning_rate: 1.0e-3, max_steps: 6, per_device_train_batch_size: 8}
  dpo:
    data: {source: lab/helpdesk_preferences, limit: 64}
    training: {learning_rate: 2.0e-4, max_steps: 4, per_device_train_batch_size: 4}
  reward:
    data: {source: lab/helpdesk_preferences, limit: 96}
    eval_data: 16
    training: {learning_rate: 1.0e-3, max_steps: 6, per_device_train_batch_size: 8}
  ppo:
    data: {source: lab/helpdesk, limit: 64}
    reward: [{source: reward}, {source: "./own.py:short", weight: 0.5}]
    training:
      learning_rate: 1.0e-3
      max_steps: 12
      per_device_train_batch_size: 8
      steps_per_generation: 2
      num_iterations: 2
      max_completion_length: 12
      save_steps: 3
"""
OWN = """\
def short(prompts, completions, **kwargs):
    return [-len(said[-1]["content"]) / 100 for said in completions]
"""


def write(folder: Path, text: str = RECIPE) -> Path:
    """A recipe file."""
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def command(recipe: Path, run: Path, *arguments: str) -> list[str]:
    return [*ALIGN, "run", str(recipe), "--run-dir", str(run), *arguments]


def align(
    *arguments: str, cwd: Path | None = None, code: int = 0, stdin: str = "", cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end and check its exit code; `cold`, as a shell would start it (see warm.py)."""
    if cold or "--processes" in arguments:
        done = subprocess.run([*ALIGN, *arguments], capture_output=True, text=True, cwd=cwd, input=stdin, check=False)
    else:
        start = warm.trained if arguments[0] in ("chat", "export", "merge") else warm.command
        done = start(*arguments, cwd=cwd, stdin=stdin)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def run(
    recipe: Path, folder: Path, *arguments: str, code: int = 0, cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """`align run` of a recipe into a folder."""
    return align("run", str(recipe), "--run-dir", str(folder), *arguments, code=code, cold=cold)


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


@dataclass(frozen=True)
class Gated:
    """A run of GATED: as its gate stopped it after sft, and the same when another limit had let it go on to dpo."""

    folder: Path

    @property
    def stopped(self) -> Path:
        return self.folder / "stopped"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def said_at_the_stop(self) -> str:
        return (self.folder / "stopped.txt").read_text(encoding="utf-8")

    @property
    def said_afterwards(self) -> str:
        return (self.folder / "went_on.txt").read_text(encoding="utf-8")

    def make(self) -> None:
        recipe = write(self.folder, GATED)
        stopped = run(recipe, self.run, code=3)
        shutil.copytree(self.run, self.stopped)
        went_on = run(recipe, self.run, "--set", "forgetting.on_violation=warn")
        (self.folder / "stopped.txt").write_text(stopped.stderr, encoding="utf-8")
        (self.folder / "went_on.txt").write_text(went_on.stderr, encoding="utf-8")


def make_rlhf(folder: Path) -> None:
    """RLHF and its run, `small.yaml` and `run`."""
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    run(write(folder, RLHF), folder / "run")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made once in a session, by whichever of pytest's workers needs it first. Nobody changes it."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, whole = root / name, root / f"{name}.whole"
    with FileLock(root / f"{name}.lock"):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder
