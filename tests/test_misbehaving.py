"""Functions of a user's that print without end, leave, or fork: the run holds, or says what they did."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import runs
from align.functions import calling
from align.runner import logs

RECIPE = """\
name: misbehaving
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  ppo:
    policy: base
    data: {source: lab/helpdesk, limit: 32}
    reward: ./own.py:reward
    training: {bf16: false, learning_rate: 1.0e-3, max_steps: 6, per_device_train_batch_size: 8, save_steps: 1,
      steps_per_generation: 1, num_iterations: 1,
      max_completion_length: 12}
"""
REWARD = """\
import os, sys

def reward(prompts, completions, **kwargs):
    {body}
    return [float(len(said[-1]["content"])) / 100 for said in completions]
"""
BODIES = {
    "prints": "[print('x' * 2**20) for _ in range(256)]",
    "forks": "os.fork()",
    "exits": "os._exit(0)",
    "asks to exit": "sys.exit(3)",
}


def test_a_log_that_is_too_large_loses_its_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever writes it goes on behind what is left."""
    monkeypatch.setattr(logs, "LARGEST", 1000)
    monkeypatch.setattr(logs, "KEPT", 10)
    log = tmp_path / "log.txt"
    logs.cut(log)
    with log.open("ab", buffering=0) as file:
        file.write(b"0123456789" * 100)
        logs.cut(log)
        assert log.stat().st_size == 1000
        file.write(b"x" * 9001)
        logs.cut(log)
        file.write(b"the end")
    assert log.read_text() == "0123456789\n[align left 0 MB of this log out]\nxxxxxxxxxxthe end"


def test_a_process_that_a_function_forks_does_not_come_back(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import os\ndef twice(a, b=2):\n    pid = os.fork()\n    if pid: os.waitpid(pid, 0)\n    return a\n"
    )
    function = calling.load(tmp_path / "own.py", "twice", "reward function")
    assert calling.taken(function, {"a": 1, "c": 3}) == {"a": 1}
    came = tmp_path / "came"
    assert function(a=1) == 1
    with came.open("a") as file:
        file.write(f"{os.getpid()}\n")
    assert came.read_text().split() == [str(os.getpid())]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return trained(tmp_path_factory.mktemp("undisturbed"), "pass")


def trained(folder: Path, body: str, code: int = 0) -> dict[str, str]:
    (folder / "own.py").write_text(REWARD.format(body=body), encoding="utf-8")
    said = runs.run(runs.write(folder, RECIPE), folder / "run", code=code, cold=True).stderr
    return runs.weights(folder / "run") if code == 0 else {"said": " ".join(said.split())}


@pytest.mark.slow
@pytest.mark.parametrize("does", ["prints", "forks"])
def test_a_run_ends_as_it_would(does: str, undisturbed: dict[str, str], tmp_path: Path) -> None:
    assert trained(tmp_path, BODIES[does]) == undisturbed
    assert sum(path.stat().st_size for path in tmp_path.rglob("log*.txt")) < 200e6


@pytest.mark.slow
def test_what_ends_the_process_is_told(tmp_path: Path) -> None:
    said = trained(tmp_path, BODIES["exits"], code=1)["said"]
    assert "error the training process ended with code 0, at" in said, said
    said = trained(tmp_path, BODIES["asks to exit"], code=1)["said"]
    assert "of own.py raised SystemExit: 3 (line 4; the first prompt was" in said


@pytest.mark.slow
def test_a_function_that_hangs_is_named(tmp_path: Path) -> None:
    """After a minute, which is the least that is taken for hanging."""
    body = "globals().update(n=globals().get('n', 0) + 1); n < 3 or __import__('time').sleep(1000)"
    said = trained(tmp_path, body, code=1)["said"]
    assert "the training process hangs in the rollout after step 2" in said, said
    assert "own.py:4 in reward" in said
