"""`align tune` with real trials: ended early, killed, gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RECIPE = """\
name: small
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: {copy: {data: items.jsonl, metric: exact}}, every: 4, early_stop: true, max_drop: 1.0}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 96}
    eval_data: 16
    training: {learning_rate: 3.0e-3, max_steps: 36, per_device_train_batch_size: 8, save_steps: 2}
"""
ASKED = ("tune", "x.yaml", "--steps", "12", "--trials", "5", "--over", "learning_rate=1e-5:1e-1", "--json")


def begun(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "align", *ASKED]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(folder: Path) -> dict[str, Any]:
    out, err = (process := begun(folder)).communicate()
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    for trial in found["trials"]:
        del trial["seconds"]
    return found


@pytest.mark.slow
def test_a_tuning_that_is_killed_comes_to_the_same(tmp_path: Path) -> None:
    """Once with kill -9 in the middle of each of the first three trials, once with Ctrl-C, once undisturbed."""
    items = [{"prompt": f"copy: {word}", "answer": word} for word in ("a b", "c d", "e f", "g h", "i j", "k l")]
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.yaml").write_text(RECIPE)
        (tmp_path / name / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    whole = ended(tmp_path / "whole")
    killed = tmp_path / "killed"
    for number, sent in ((1, signal.SIGKILL), (2, signal.SIGKILL), (3, signal.SIGINT)):
        process = begun(killed)
        stage = killed / f"runs/small-tune-sft/trials/00{number}/run/stages/sft"
        while not list(stage.glob("checkpoints/checkpoint-*")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(sent)
        process.communicate()
    found = ended(killed)
    assert found["trials"] == whole["trials"] and found["best"] == whole["best"]
    states = {trial["state"] for trial in whole["trials"]}
    assert states == {"done", "ended early"}
    runs = killed / "runs/small-tune-sft/trials"
    resumed = [json.loads((path / "run/run.json").read_text())["stages"]["sft"] for path in sorted(runs.iterdir())]
    assert any(one["resumed_from"] for one in resumed[:3])
    assert not list(runs.glob("*/run/superseded"))  # nothing was begun again
    assert not list(runs.glob("*/run/stages/sft/**/*.safetensors"))
