"""What an attempt at a stage takes over from another: all that is made before training, from the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import runs
from align.lab import data
from align.penalties import fisher
from align.run_folder import attempts, files
from align.run_folder.paths import RunDir
from align.run_folder.records import Ticket, UserFunction, Writing
from align.run_folder.stage_dir import StageDir
from align.stage.rewrite_keys import Rewrite
from align.worker import writing
from align.written.keys import SelfWritten
from models import BASE, LORA, Stages
from test_acting_runs import decisions
from test_resume import kill_child

BESIDE = {  # of each record, the files that it vouches for
    "fisher.json": {"fisher.safetensors"},
    "written/replay.json": {"written/replay.jsonl", "written/replay_rejected.jsonl"},
}
MADE = {*BESIDE, *BESIDE["fisher.json"], *BESIDE["written/replay.json"]}
CHECK = "def right(completion, answer):\n    return completion.endswith('.')\n"
EWC = {"data": "lab/general", "weight": 0.5, "rows": 6, "fisher": "sampled"}


def content(here: StageDir) -> dict[str, bytes]:
    """What was made before training."""
    made = [*here.root.glob("fisher.*"), *here.written.glob("*")]
    return {path.relative_to(here.root).as_posix(): path.read_bytes() for path in sorted(made)}


def test_a_record_never_comes_before_what_it_vouches_for(tmp_path: Path) -> None:
    """Killed at every file; what is there already stays."""
    here = RunDir(tmp_path).stage("sft")
    for name in (*MADE, "fisher.part", "metrics.jsonl"):
        files.write_text(here.attempt(1).root / name, f"{name} of the first")
    for last in range(len(MADE)):
        left, link = iter(range(last)), os.link
        for name in MADE:
            (here.root / name).unlink(missing_ok=True)

        def killed(source: Any, target: Any, left: Any = left, link: Any = link) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            link(source, target)

        with mock.patch.object(os, "link", killed), pytest.raises(KeyboardInterrupt):
            attempts.inherit(here)
        there = content(here).keys()
        assert all(record not in there or besides <= there for record, besides in BESIDE.items())
    attempts.inherit(here)
    assert content(here) == {name: f"{name} of the first".encode() for name in MADE}
    files.write_text(here.fisher_record, "its own")
    attempts.inherit(here)
    assert here.fisher_record.read_text(encoding="utf-8") == "its own"
    assert here.attempt(1).fisher_record.read_text(encoding="utf-8") == "fisher.json of the first"


def asked(stages: Stages, folder: Path, id: str) -> Ticket:
    """SFT with EWC, rows that the policy writes, and answers that it rewrites."""
    (folder / "check.py").write_text(CHECK, encoding="utf-8")
    found = stages.ticket(id, "sft", BASE, LORA, keys={"ewc": EWC}, fisher=data.rows("lab/general", n=6))
    own = Rewrite.model_validate({"samples": 2, "max_new_tokens": 24, "accept": "./check.py:right"})
    found.keys["rewrite"] = own.model_dump(mode="json")
    found.rewrite_check = UserFunction(name="right", path=str(folder / "check.py"), sha256="")
    keys = SelfWritten(rows=24, max_new_tokens=24).model_dump(mode="json")
    found.writing, found.replay_ratio = Writing(keys=keys, prompts=None, check=None, max_length=1024), 0.25
    return found


def test_another_attempt_trains_as_if_it_had_made_all_itself(tmp_path: Path) -> None:
    """To the last bit; of something else it takes nothing."""
    stages = Stages(RunDir(tmp_path))
    first, here = asked(stages, tmp_path, "sft"), stages.run.stage("sft")
    files.write_json(here.ticket, first.model_dump(mode="json"))
    stages.execute(first)
    changed = {"attempt": 2, "replay_ratio": 0.4, "training": {**first.training, "learning_rate": 5e-4}}
    second = first.model_copy(update={**changed, "fingerprint": "another", "first": first.fingerprint})
    attempts.put_aside(here, 1)
    attempts.inherit(here)
    for path in (here.fisher, here.written / "replay.jsonl", here.written / "rewrite.jsonl"):
        assert path.samefile(here.attempt(1).root / path.relative_to(here.root))
    nothing = AssertionError("made again")
    with (
        mock.patch.object(fisher, "diagonal", side_effect=nothing),
        mock.patch.object(writing._Writer, "bench", side_effect=nothing),
    ):
        stages.execute(second)
    alone = asked(stages, tmp_path, "alone").model_copy(update={**changed, "fingerprint": "another"})
    stages.execute(alone)
    weights = [load_file(stages.run.stage(id).model / "adapter_model.safetensors") for id in ("sft", "alone")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert stages.jobs["sft"].rows == stages.jobs["alone"].rows
    other = second.model_copy(update={"first": "of something else"})
    with mock.patch.object(writing._Writer, "bench", side_effect=nothing), pytest.raises(AssertionError):
        stages.execute(other)


RECIPE = """\
name: again
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting:
  probes: {extract: {data: extract.jsonl, metric: exact}}
  answers: false
  max_drop: 0.02
  on_violation: [retry, rollback]
  retry: {replay: 2, learning_rate: 0.9}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 96}
    replay: {self: {rows: 40, max_new_tokens: 24}, ratio: 0.1}
    ewc: {data: {source: lab/general, limit: 12}, weight: 0.1}
    training: {learning_rate: 1.0e-2, max_steps: 12, per_device_train_batch_size: 8, save_steps: 2, logging_steps: 1}
"""


@pytest.mark.slow
def test_a_run_killed_in_its_second_attempt_goes_on_with_what_the_first_had_made(tmp_path: Path) -> None:
    from test_acting_runs import written

    written(tmp_path, "lora")  # its questions
    recipe, whole, folder = runs.write(tmp_path, RECIPE), tmp_path / "whole", tmp_path / "killed"
    runs.run(recipe, whole)
    here = RunDir(folder).stage("sft")
    process = runs.started(recipe, folder)
    runs.wait_for(process, lambda: attempts.standing(here) == 2 and runs.last_step(folder, "sft") >= 3, seconds=600)
    kill_child(process)
    for path in (here.fisher, here.written / "replay.jsonl"):
        assert path.samefile(here.attempt(1).root / path.relative_to(here.root))
    assert "attempt 2" in runs.run(recipe, folder).stderr
    assert decisions(folder) == decisions(whole) and runs.weights(folder) == runs.weights(whole)
    assert content(here) == content(here.attempt(1))
    first, second = (content(RunDir(run).stage("sft")) for run in (folder, whole))
    assert all(first[name] == second[name] for name in first if not name.endswith(".json"))  # which tell the time
