"""Replay as a term in the loss of DPO, KTO, PPO, RLOO, GRPO and SDFT: its gradient, the same however shared."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

import gradient_sums
import runs
from align.data import tokens
from align.data.replay import Beside, Source, draw
from align.lab import data
from align.rl import parts
from align.run_folder.launch import Launch
from align.run_folder.paths import RunDir
from align.run_folder.records import ReplayPart, Reward, Ticket
from align.worker import execute
from models import BASE, FULL, Stages, lab_tokenizer

PROGRAMS = ("dpo", "kto", "ppo", "rloo", "grpo", "sdft")
OLD = data.rows("lab/general", n=24)
PARTS = [ReplayPart(name="chats", weight=3.0, count=16), ReplayPart(name="texts", weight=1.0, count=8)]
COEF, RATIO, BATCH = 0.7, 0.25, 16
BESIDE = 5  # of 16 + 5 rows, nearest to 0.25; fewer than the parts of an update in four of each of two processes
FILE = str(Path(__file__).parent / "rewards_for_tests.py")
REWARD = Reward(name="short", kind="function", weight=1.0, path=FILE, function="short")


def ticket(folder: Path, program: str, *, replay: bool = True, **training: Any) -> Ticket:
    """A stage of which an epoch has 16 rows; where it replays, from two sources."""
    stages = Stages(RunDir(folder))
    online, alone = program in ("ppo", "rloo", "grpo", "sdft"), program in ("ppo", "sdft")
    answers = {"max_completion_length": 8, "num_generations": 1 if alone else 2, "num_iterations": 1}
    rows = data.rows("lab/helpdesk" if online else "lab/helpdesk_preferences", n=16)
    rewards = [REWARD] if online and program != "sdft" else ()
    found = stages.ticket(
        program, program, BASE, FULL, rows=rows, dtype="float32", replay=OLD if replay else None,
        keys={"ptx_coef": COEF}, rewards=rewards, **(answers if online else {}), **training,
    )  # fmt: skip
    if online:
        passes = {"steps_per_generation": found.training["gradient_accumulation_steps"]}
        found = found.model_copy(update={"training": found.training | passes})
    return found.model_copy(update={"replay_sources": PARTS, "replay_ratio": RATIO}) if replay else found


def trainer(folder: str, program: str, accumulation: int, processes: int, replay: bool) -> Any:
    """The trainer of a stage as it begins to train, kept by its job from training."""
    own = {name: value for name, value in gradient_sums.PLAIN.items() if name not in ("use_cpu", "report_to", "seed")}
    split = {
        "per_device_train_batch_size": BATCH // accumulation // processes, "gradient_accumulation_steps": accumulation
    }  # fmt: skip
    asked = ticket(Path(folder), program, replay=replay, **own, **split)
    started = {"processes": processes, "launch": Launch(processes=processes)}
    at = execute.load(RunDir(Path(folder)), asked.model_copy(update=started), lambda: False)
    execute.build(at)
    return _Whole(at)


class _Whole:
    """Stands for the trainer of a stage: `train` runs the stage's own program, which makes and readies the trainer."""

    def __init__(self, at: execute.Loaded) -> None:
        self.at, self.model = at, at.job.model
        self.callbacks: list[Any] = []
        at.job.fit = self._fit  # type: ignore[method-assign]

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def train(self) -> None:
        self.at.program.stage.train(self.at.job)

    def _fit(self, made: Any) -> dict[str, float]:
        for callback in self.callbacks:
            made.add_callback(callback)
        made.train()
        return {}


def beside_the_first_update(program: str) -> list[dict[str, Any]]:
    """The rows; of PPO those that are drawn for an epoch of as many answers."""
    if program == "ppo":
        sources = [Source("chats", 3.0, OLD[:16]), Source("texts", 1.0, OLD[16:])]
        return draw(sources, BESIDE, seed=3)[0]
    updates = 1 if program in ("dpo", "sdft") else 2  # of an epoch: 16 pairs, or two answers to each of 16 prompts
    chosen = Beside([16, 8], [3.0, 1.0], BESIDE, updates, seed=3).rows(0)
    return [OLD[row + (0, 16)[source]] for source, row in chosen]


def alone(folder: Path, program: str) -> gradient_sums.Gradients:
    """The gradient of the mean over all tokens that the rows of the first update are to teach, by hand."""
    at = execute.load(RunDir(folder), ticket(folder, program), lambda: False)
    execute.build(at)
    rows = beside_the_first_update(program)
    args = type("Args", (), {"packing": False, "max_length": None, "truncation_mode": "keep_start"})
    columns = tokens.together(tokens.language_modeling(rows, None, lab_tokenizer(), args, completion_only=True))

    def loss(model: nn.Module) -> torch.Tensor:
        logits = [model(input_ids=torch.tensor([ids])).logits[0, :-1] for ids in columns["input_ids"]]
        return cross_entropy(torch.cat(logits), torch.cat([torch.tensor(own[1:]) for own in columns["labels"]]))

    at.job.model.eval()
    return gradient_sums.of_loss(at.job.model, loss)


def of_all(text: gradient_sums.Gradients, whole: gradient_sums.Gradients) -> gradient_sums.Gradients:
    """With nothing for the critic, of which the text knows nothing."""
    return {name: text[name] if name in text else torch.zeros_like(found) for name, found in whole.items()}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_gradient_is_the_stages_own_and_that_of_the_replayed_text(tmp_path: Path, program: str) -> None:
    by_itself = alone(tmp_path, program)
    for accumulation in (1, 4):
        whole = gradient_sums.of_update(trainer(str(tmp_path), program, accumulation, 1, replay=True))
        plain = gradient_sums.of_update(trainer(str(tmp_path), program, accumulation, 1, replay=False))
        text = of_all(by_itself, whole)
        assert gradient_sums.difference(whole, plain, [(COEF, text)]) < 1e-6, accumulation
        assert gradient_sums.size(by_itself) > 1e-3 and gradient_sums.size(plain) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_two_processes_share_the_replayed_rows(tmp_path: Path, program: str) -> None:
    cases = [
        {"folder": str(tmp_path), "program": program, "accumulation": pieces, "processes": 2, "replay": replay}
        for pieces in (1, 4)
        for replay in (True, False)
    ]
    found = gradient_sums.in_processes("test_replay_terms:trainer", tmp_path, cases)
    by_itself = alone(tmp_path, program)
    for whole, plain in (found[:2], found[2:]):
        assert gradient_sums.difference(whole, plain, [(COEF, of_all(by_itself, whole))]) < 1e-6


def test_ppo_takes_the_rows_of_every_source() -> None:
    rows = [{"prompt": "a"}, {"text": "one"}, {"text": "two"}, {"text": "three"}]
    job: Any = SimpleNamespace(
        rows=rows, groups=[0, 1, 2, 1], tokenizer=lab_tokenizer(), ticket=SimpleNamespace(replay_ratio=0.5)
    )
    split = SimpleNamespace(per_device_train_batch_size=3, gradient_accumulation_steps=2, world_size=2)
    stream = parts.replay(job, split)
    assert stream is not None and (len(stream.learnt), stream.size) == (3, 12), "beside the answers of a whole update"


# ---- whole runs -----------------------------------------------------------------------------------------------------

RUN = (
    runs.RECIPE.replace("method: qlora", "method: lora, lora: {dropout: 0.1}")
    + "    replay: {ratio: 0.3, sources: [{data: {source: lab/general, limit: 40}, weight: 2}, {stage: sft}]}\n"
)
FLOAT32 = ("--set", "model.dtype=float32", "--set", "stages.sft.training.bf16=false")
FLOAT32 += ("--set", "stages.dpo.training.bf16=false", "--set", "parameterization.lora.dropout=0.0")
TWO = ("--processes", "2", "--set", "stages.sft.training.per_device_train_batch_size=4")
TWO += ("--set", "stages.dpo.training.per_device_train_batch_size=2")


@pytest.mark.slow
def test_a_killed_dpo_with_replay_ends_with_the_same_weights(tmp_path: Path) -> None:
    recipe = runs.write(tmp_path, RUN)
    runs.run(recipe, tmp_path / "whole")
    assert runs.outcome(tmp_path / "whole", "dpo")["data"] == {
        "rows": 64, "replay_rows": 32, "replay_ratio": 32 / 96, "eval_rows": 0, "replay_sources": [
            {"name": "lab/general", "weight": 2.0, "rows": 40, "replayed": 21},
            {"name": "stage sft", "weight": 1.0, "rows": 96, "replayed": 11},
        ],
    }  # fmt: skip
    process = runs.started(recipe, tmp_path / "killed")
    runs.wait_for(process, lambda: runs.last_step(tmp_path / "killed", "dpo") >= 5, seconds=600)
    for pid in runs.children(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert "(resuming from checkpoint-" in runs.run(recipe, tmp_path / "killed").stderr
    assert runs.weights(tmp_path / "killed") == runs.weights(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_of_dpo_with_replay_end_with_the_weights_of_one(tmp_path: Path) -> None:
    recipe = runs.write(tmp_path, RUN)
    runs.run(recipe, tmp_path / "one", *FLOAT32)
    runs.run(recipe, tmp_path / "two", *FLOAT32, *TWO)
    assert runs.outcome(tmp_path / "one", "dpo")["data"] == runs.outcome(tmp_path / "two", "dpo")["data"]
    logged = []
    for folder in ("one", "two"):
        lines = (tmp_path / folder / "stages/dpo/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged.append([entry["loss/ptx"] for entry in map(json.loads, lines) if "loss/ptx" in entry])
        weights = load_file(tmp_path / folder / "stages/dpo/model/adapter_model.safetensors")
        if folder == "one":
            first = weights
    assert len(logged[0]) == 8 and logged[1] == pytest.approx(logged[0], abs=1e-3)
    assert max(float((first[key] - weights[key]).abs().max()) for key in first) <= 1e-5
