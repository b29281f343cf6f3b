"""A recipe that `align import` made of a TRL file gives the losses of TRL's own script, step by step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from align.lab import MODEL_DIR
from align.lab import data as lab

TRL = """\
import transformers, trl
from trl.scripts import SCRIPT as script

class Told(transformers.TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kept):
        if "loss" in logs:
            print("LOSS", logs["loss"], flush=True)

begin = trl.TRAINER.__init__
def begun(self, *given, **named):
    begin(self, *given, **named)
    self.add_callback(Told())
trl.TRAINER.__init__ = begun
script.main(*script.make_parser().parse_args_and_config(args=["--config", "theirs.yaml"]))
"""
COMMON = {
    "dataset_name": "rows",
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 5,
    "warmup_steps": 2,
    "logging_steps": 1,
    "lr_scheduler_type": "cosine",
    "train_sampling_strategy": "sequential",  # the two shuffle by different generators
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "output_dir": "out",
}
LORA = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


def losses(folder: Path, stage: str, model: Path, **given: object) -> tuple[list[float], list[float]]:
    """The losses of five steps: TRL's, and those of the imported recipe."""
    (folder / "theirs.yaml").write_text(yaml.safe_dump(COMMON | {"model_name_or_path": str(model)} | given))
    script = TRL.replace("SCRIPT", stage).replace("TRAINER", {"sft": "SFTTrainer", "dpo": "DPOTrainer"}[stage])
    said = run(folder, "-c", script)
    theirs = [float(line.split()[1]) for line in said.splitlines() if line.startswith("LOSS")]
    assert "0 are not in it" in run(
        folder, "-m", "align", "import", "theirs.yaml", "--stage", stage, "--out", "ours.yaml"
    )
    run(folder, "-m", "align", "run", "ours.yaml", "--run-dir", "run", "--set", "forgetting.probes=none")
    lines = (folder / f"run/stages/{stage}/metrics.jsonl").read_text().splitlines()
    return theirs, [found["loss"] for found in map(json.loads, lines) if "loss" in found]


def run(folder: Path, *arguments: str) -> str:
    """What Python printed, with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def write(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "rows").mkdir()
    (folder / "rows/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def helpdesk(count: int) -> list[dict[str, str]]:
    talks = [row["messages"] for row in lab.rows("lab/helpdesk", n=count)]
    return [{"prompt": talk[0]["content"] + "\n", "completion": talk[1]["content"]} for talk in talks]


def preferences(count: int) -> list[dict[str, str]]:
    found = []
    for row in lab.rows("lab/helpdesk_preferences", n=count):
        sides = {name: row[name][0]["content"] for name in ("prompt", "chosen", "rejected")}
        found.append(sides | {"prompt": sides["prompt"] + "\n"})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", [{}, LORA], ids=["full", "lora"])
def test_sft_of_the_lab(tmp_path: Path, method: dict[str, object]) -> None:
    write(tmp_path, helpdesk(60))
    theirs, ours = losses(tmp_path, "sft", MODEL_DIR, **method)
    assert len(theirs) == 5 and ours == theirs


@pytest.mark.slow
def test_dpo_of_the_lab(tmp_path: Path) -> None:
    write(tmp_path, preferences(60))
    theirs, ours = losses(tmp_path, "dpo", MODEL_DIR, beta=0.2, **LORA)
    assert len(theirs) == 5 and ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.real
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_of_a_real_model(tmp_path: Path, smollm2: Path, stage: str) -> None:
    write(tmp_path, helpdesk(24) if stage == "sft" else preferences(24))
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-4}
    theirs, ours = losses(tmp_path, stage, smollm2, **small, **LORA)
    assert len(theirs) == 5 and ours == pytest.approx(theirs, abs=1e-5)
