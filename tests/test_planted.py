"""What a hostile model, checkpoint or recipe may hold: nothing of it is run, followed or told."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runs
from align import lab
from align.errors import AlignError, Faults
from align.preflight.check import prepare
from align.recipe.load import load
from align.run_folder import checkpoints, secrets

RECIPE = """\
name: planted
model: {base: ./base}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft: {data: {source: lab/helpdesk, limit: 16}, training: {max_steps: 2}}
"""


class Planted:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


def base(folder: Path, name: str = "config.json", **keys: Any) -> Path:
    """The lab's model with some keys of a JSON file changed; None takes a key away."""
    shutil.copytree(lab.MODEL_DIR, folder / "base")
    path = folder / "base" / name
    found = {**json.loads(path.read_text()), **keys}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return folder / "base"


def told(folder: Path, text: str = RECIPE, *changes: str) -> str:
    """What checking a recipe says of it."""
    try:
        prepare(load(runs.write(folder, text), changes))
    except (AlignError, Faults) as error:
        return str(error)
    return ""


CODE = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        (
            "config.json",
            {"model_type": "mine", "auto_map": CODE},
            "is Python code that comes with it, which is not run",
        ),
        ("config.json", {"model_type": "mine"}, "knows no causal language model of the model_type 'mine'"),
        ("config.json", {"model_type": "lama"}, "did you mean 'llama'?"),
        ("config.json", {"model_type": "t5"}, "knows no causal language model of the model_type 't5'"),
        ("config.json", {"model_type": 3}, "knows no causal language model of the model_type 3"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}},
            "the tokenizer of the model './base' is Python code that comes with it, which is not run",
        ),
        ("tokenizer_config.json", {"tokenizer_class": 3}, "has a tokenizer_class that is not text, but 3"),
    ],
)
def test_code_of_a_model_is_refused_before_anything_is_loaded(
    name: str, keys: dict[str, Any], says: str, tmp_path: Path
) -> None:
    (base(tmp_path, name, **keys) / "mine.py").write_text("raise SystemExit('it was run')")
    assert says in told(tmp_path)
    assert says not in told(tmp_path, RECIPE, "model.trust_remote_code=true")


def test_code_that_is_listed_and_not_needed_is_no_reason_to_refuse(tmp_path: Path) -> None:
    base(tmp_path, auto_map=CODE)
    assert told(tmp_path) == ""


@pytest.mark.parametrize(
    "change",
    [
        "name=../x",
        "stages.../x.data=lab/helpdesk",
        "pipeline=../../x",
        "stages.sft.policy=../x",
        "stages.sft.stage=../x",
    ],
)
def test_a_name_that_is_a_path_is_refused(change: str, tmp_path: Path) -> None:
    base(tmp_path)
    assert "../x" in told(tmp_path, RECIPE, change)


def test_a_secret_of_the_environment_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcdefgh")
    monkeypatch.setenv("HF_TOKEN", "abcdefgh-and-more")
    monkeypatch.setenv("SHORT_TOKEN", "word")
    assert secrets.hidden("a abcdefgh b abcdefgh-and-more word") == "a *** b *** word"
    log = tmp_path / "log.txt"
    with log.open("ab", buffering=0) as file:
        file.write(b"got abcdefgh-and-more\n")
        secrets.hide_in(log)
        file.write(b"more\n")
    assert log.read_text() == "got ***\nmore\n"


STAGE = """\
import os
from dataclasses import replace
from pathlib import Path
from align.stage import program

SFT = program.load("sft", Path())

def train(job):
    print("the token is", os.environ["HF_TOKEN"], flush=True)
    if os.environ.get("FAILS"):
        raise ValueError("cannot log in with " + os.environ["HF_TOKEN"])
    return SFT.stage.train(job)

STAGE = replace(SFT.stage, train=train)
"""
SMALL = runs.RECIPE.replace("pipeline: sft_dpo", "pipeline: sft").split("  dpo:")[0]


def test_no_file_of_a_run_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_abcdefghijklmnop"
    monkeypatch.setenv("HF_TOKEN", secret)
    (tmp_path / "own.py").write_text(STAGE, encoding="utf-8")
    recipe = runs.write(tmp_path, SMALL.replace("  sft:\n", "  sft:\n    stage: ./own.py\n"))
    monkeypatch.setenv("FAILS", "1")
    said = runs.run(recipe, tmp_path / "run", code=1).stderr
    assert "cannot log in with ***" in " ".join(said.split()) and secret not in said
    monkeypatch.delenv("FAILS")
    said += runs.run(recipe, tmp_path / "run").stderr
    held = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(held) > 15 and secret not in said
    assert not [path for path in held if secret.encode() in path.read_bytes()]
    assert "the token is ***" in (tmp_path / "run/stages/sft/log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    """Whoever can write there can write its hashes too."""
    recipe, run = runs.write(tmp_path, SMALL), tmp_path / "run"
    process = runs.started(recipe, run)
    runs.wait_for(process, lambda: runs.last_step(run, "sft") >= 4)
    process.send_signal(signal.SIGINT)
    process.communicate()
    checkpoint = next(iter(checkpoints.latest_first(run / "stages/sft/checkpoints")))
    (checkpoint / name).write_bytes(pickle.dumps(Planted(tmp_path / "it was run")))
    (checkpoint / checkpoints.COMPLETE).unlink()
    checkpoints.seal(checkpoint)
    said = " ".join(runs.run(recipe, run, code=1).stderr.split())
    assert "holds pickled objects other than tensors and numbers" in said
    assert not (tmp_path / "it was run").exists()
    shutil.rmtree(checkpoint)
    runs.run(recipe, run)
