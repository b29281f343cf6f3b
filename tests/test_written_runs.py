"""Stages whose policy writes rows to replay, or answers to train on, before they begin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import runs
from align.errors import AlignError
from align.lab import MODEL_DIR, data
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Policy, Reward, Ticket, UserFunction, Writing
from align.stage.rewrite_keys import Rewrite
from align.worker import execute
from align.worker.rows import recall
from align.written.keys import SelfWritten
from models import BASE, LORA, Stages, preferences
from test_resume import kill_child, kill_parent

CHECKS = """\
import os, time

def told(prompt, completion):
    time.sleep(float(os.environ.get("SLOWLY", 0)))
    return not completion[:1].isdigit() and len(prompt[-1]["content"]) > 8

def right(prompt, completion, answer):
    time.sleep(float(os.environ.get("SLOWLY", 0)))
    return completion.endswith(".") and completion != answer

def short(prompts, completions, **kwargs):
    return [-len(said[-1]["content"]) for said in completions]
"""

RECIPE = """\
name: written
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 96}
    replay: {self: {rows: 80, max_new_tokens: 32, check: "./check.py:told"}, ratio: 0.25}
    training: {bf16: false, learning_rate: 1.0e-3, max_steps: 9, per_device_train_batch_size: 8, save_steps: 3}
  again:
    stage: sft
    policy: sft
    data: {source: lab/helpdesk, limit: 48}
    rewrite: {by: self, accept: "./check.py:right", samples: 2, max_new_tokens: 32}
    training: {bf16: false, learning_rate: 1.0e-3, max_steps: 6, per_device_train_batch_size: 8, save_steps: 2}
"""
TWO = ("--processes", "2")
TWO += ("--set", "stages.sft.training.per_device_train_batch_size=4")
TWO += ("--set", "stages.again.training.per_device_train_batch_size=4")


def recipe(folder: Path) -> Path:
    (folder / "check.py").write_text(CHECKS, encoding="utf-8")
    return runs.write(folder, RECIPE)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(run: Path) -> dict[str, bytes]:
    """Every row that was kept or rejected, by stage and file."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.glob("stages/*/written/*.jsonl"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to; `small.yaml`, `run` and `said`."""
    folder = tmp_path_factory.mktemp("whole")
    said = runs.run(recipe(folder), folder / "run").stderr
    (folder / "said").write_text(" ".join(said.split()), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_rows_are_written_filtered_counted_and_replayed(whole: Path) -> None:
    here = whole / "run/stages/sft"
    kept, rejected = lines(here / "written/replay.jsonl"), lines(here / "written/replay_rejected.jsonl")
    told = runs.outcome(whole / "run", "sft")["data"]
    own = told["self_replay"]
    assert (told["rows"], told["replay_rows"], told["replay_ratio"]) == (96, 32, 0.25)
    assert (own["by"], own["written"], own["kept"]) == ("incoming", 80, len(kept))
    assert len(kept) + len(rejected) == 80 == own["kept"] + sum(own["rejected"].values())
    assert 40 <= len(kept) < 80 and own["rejected"]["refused by the checker"] > 0
    for why, count in own["rejected"].items():
        assert sum(row["why"] == why for row in rejected) == count
    for row in kept:
        assert [turn["role"] for turn in (*row["prompt"], *row["completion"])] == ["user", "assistant"]
        assert len(row["prompt"][0]["content"]) > 8 and not row["completion"][0]["content"][:1].isdigit()
    reasons = ", ".join(f"{count} {why}" for why, count in own["rejected"].items())
    sentence = f"sft: the policy wrote 80 rows to replay, of which {len(kept)} are kept ({reasons})"
    assert sentence in (whole / "said").read_text(encoding="utf-8")


@pytest.mark.slow
def test_accepted_answers_replace_the_data_s(whole: Path) -> None:
    here = whole / "run/stages/again"
    new, others = lines(here / "written/rewrite.jsonl"), lines(here / "written/rewrite_rejected.jsonl")
    told = runs.outcome(whole / "run", "again")["data"]
    own = told["rewrite"]
    assert told["rows"] == own["rows"] == 48 == len(new) + len(others)
    assert own["rewritten"] == len(new) > 10 and own["dropped"] == 0 == own["same"]
    task = data.rows("lab/helpdesk")[:48]
    for line in new:
        asked, said = task[line["row"]]["messages"]
        assert line["prompt"] == [asked] and line["was"] == said["content"] != line["answer"]
        assert line["answer"].endswith(".")
    assert sorted(line["row"] for line in (*new, *others)) == list(range(48))
    reasons = ", ".join(f"{why} ({count})" for why, count in own["not_rewritten"].items())
    sentence = f"again: {len(new)} of 48 answers are the policy's own (0 of them the same as the data's); "
    sentence += f"not replaced: {reasons}"
    assert sentence in (whole / "said").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_report_tells_what_was_written(whole: Path) -> None:
    kept = lines(whole / "run/stages/sft/written/replay.jsonl")
    text = (whole / "run/report.md").read_text(encoding="utf-8")
    assert "#### Written by the policy itself" in text
    assert f"80 rows to replay, of which {len(kept)} are kept" in text
    assert kept[0]["completion"][0]["content"] in text
    new = lines(whole / "run/stages/again/written/rewrite.jsonl")
    assert f"{len(new)} of 48 answers" in text and new[0]["was"] in text
    assert "Written by the policy itself" in (whole / "run/report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_killed_while_its_policy_writes_and_afterwards(whole: Path, tmp_path: Path) -> None:
    path, folder = recipe(tmp_path), tmp_path / "run"
    progress = folder / "stages/sft/progress.jsonl"
    with pytest.MonkeyPatch.context() as slowly:
        slowly.setenv("SLOWLY", "0.2")
        first = runs.started(path, folder)
        runs.wait_for(first, lambda: progress.is_file() and "writes 80 rows" in progress.read_text(encoding="utf-8"))
        kill_parent(first)
        assert not (folder / "stages/sft/written/replay.json").exists()
    second = runs.started(path, folder)
    runs.wait_for(second, lambda: runs.last_step(folder, "sft") >= 5)
    kill_child(second)
    kept = folder / "stages/sft/written/replay.jsonl"
    before = kept.stat().st_mtime_ns
    third = runs.started(path, folder)
    runs.wait_for(third, lambda: runs.last_step(folder, "again") >= 4)
    kill_child(third)
    assert kept.stat().st_mtime_ns == before, "what lies there is taken"
    answers = folder / "stages/again/written/rewrite.jsonl"
    answers.write_text("", encoding="utf-8")
    assert "(resuming from checkpoint-" in runs.run(path, folder).stderr
    assert written(folder) == written(whole / "run"), "a damaged file is written again"
    assert runs.weights(folder) == runs.weights(whole / "run")


@pytest.mark.slow
def test_two_processes_write_what_one_does(whole: Path, tmp_path: Path) -> None:
    runs.run(recipe(tmp_path), tmp_path / "two", *TWO)
    assert written(tmp_path / "two") == written(whole / "run")
    for stage in ("sft", "again"):
        one, two = runs.outcome(whole / "run", stage), runs.outcome(tmp_path / "two", stage)
        assert two["world_size"] == 2
        assert one["fingerprint"] == two["fingerprint"]
        name = f"stages/{stage}/model/adapter_model.safetensors"
        first, second = load_file(whole / "run" / name), load_file(tmp_path / "two" / name)
        assert max(float((first[key] - second[key]).abs().max()) for key in first) <= 1e-5


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(RunDir(tmp_path))


def writes(ticket: Ticket, prompts: Any = None, check: UserFunction | None = None, **keys: Any) -> Ticket:
    """The ticket with rows that its policy writes, a quarter of all."""
    own = SelfWritten(**{"rows": 24, "max_new_tokens": 24, **keys})
    ticket.writing = Writing(keys=own.model_dump(mode="json"), prompts=prompts, check=check, max_length=1024)
    ticket.replay_ratio = 0.25
    return ticket


def kept(stages: Stages, id: str, name: str = "replay") -> list[dict[str, Any]]:
    return lines(stages.run.stage(id).written / f"{name}.jsonl")


def same_weights(stages: Stages, one: str, other: str) -> bool:
    first, second = (load_file(stages.run.stage(id).model / "adapter_model.safetensors") for id in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def test_written_rows_train_as_the_same_rows_of_a_file(stages: Stages) -> None:
    """Nothing is drawn that the stage would draw otherwise."""
    stages.execute(writes(stages.ticket("own", "sft", BASE, LORA)))
    rows = kept(stages, "own")
    stages.execute(stages.ticket("file", "sft", BASE, LORA, replay=rows))
    assert same_weights(stages, "own", "file")
    assert stages.jobs["own"].rows == stages.jobs["file"].rows


@pytest.mark.slow
def test_another_seed_writes_other_rows_and_the_base_writes_too(stages: Stages) -> None:
    policy = stages.execute(stages.ticket("sft", "sft", BASE, LORA, max_steps=12))
    found = {}
    for name, seed, by in (
        ("one", 3, "incoming"),
        ("two", 3, "incoming"),
        ("seed", 4, "incoming"),
        ("base", 3, "base"),
    ):
        ticket = writes(stages.ticket(name, "sft", policy, LORA, max_steps=1), by=by)
        ticket.seed = seed
        stages.execute(ticket)
        found[name] = kept(stages, name)
    assert found["one"] == found["two"]
    assert found["one"] != found["seed"]
    assert found["one"] != found["base"]
    assert stages.outcomes["base"].data["self_replay"]["by"] == "base"


@pytest.mark.slow
def test_given_prompts_are_asked_in_turn(stages: Stages) -> None:
    asked = [{"prompt": "What is 7 plus 2?"}, {"prompt": [{"role": "user", "content": "Copy this: d c g"}]}]
    ticket = stages.ticket("sft", "sft", BASE, LORA, max_steps=1)
    stages.execute(writes(ticket, stages.rows("asked", asked), rows=4, temperature=0.1))
    rejected = lines(stages.run.stage("sft").written / "replay_rejected.jsonl")
    found = sorted((row["prompt"][0]["content"], row["completion"][0]["content"]) for row in kept(stages, "sft"))
    assert found == [("Copy this: d c g", "d c g"), ("What is 7 plus 2?", "9")]
    assert [row["why"] for row in rejected] == ["written before"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"max_new_tokens": 2},
            "the policy that comes in cannot write the rows that stage 'sft' replays: it wrote 24 rows to replay, of "
            "which 0 are kept (24 without a whole question)\n  -> raise `max_new_tokens`, lower `temperature`, or give "
            "`prompts`; all of them are in {file}",
        ),
        (
            {"min_new_tokens": 20, "by": "base"},
            "the base cannot write the rows that stage 'sft' replays: it wrote 24 rows to replay, of which 0 are kept "
            "(24 too short)\n  -> lower `min_new_tokens`, or replay other rows with `data`; all of them are in {file}",
        ),
    ],
)
def test_a_policy_that_cannot_write(stages: Stages, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(AlignError) as caught:
        stages.execute(writes(stages.ticket("sft", "sft", BASE, LORA), **keys))
    file = stages.run.stage("sft").written / "replay_rejected.jsonl"
    assert str(caught.value) == says.format(file=file)
    assert len(lines(file)) == 24
    assert not stages.run.stage("sft").outcome.exists()


@pytest.mark.slow
def test_ppo_replays_what_its_policy_wrote(stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(CHECKS, encoding="utf-8")
    reward = Reward(name="short", kind="function", weight=1.0, path=str(tmp_path / "check.py"), function="short")
    rollout = {"steps_per_generation": 2, "num_iterations": 1, "num_generations": 1, "max_completion_length": 8}
    ticket = stages.ticket("ppo", "ppo", BASE, LORA, rewards=[reward], max_steps=2, **rollout)
    stages.execute(writes(ticket))
    job = stages.jobs["ppo"]
    replayed = [row for row, group in zip(job.rows, job.groups, strict=True) if group == 1]
    assert len(replayed) == 5 and all(row in kept(stages, "ppo") for row in replayed)
    assert stages.logged("ppo", "loss/ptx") != []


@pytest.fixture
def without_template(tmp_path: Path) -> Policy:
    """The lab model as a base that knows no conversations."""
    folder = tmp_path / "plain"
    shutil.copytree(MODEL_DIR, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = files.read_json(folder / "tokenizer_config.json")
    config.pop("chat_template", None)
    files.write_json(folder / "tokenizer_config.json", config)
    return Policy(base=BaseModelIdentity(name="plain", path=str(folder), identity="1" * 64))


@pytest.mark.slow
def test_a_base_without_a_template_goes_on_from_texts_and_from_nothing(
    stages: Stages, without_template: Policy
) -> None:
    text = [row for row in data.rows("lab/general") if "text" in row][:16]
    ticket = stages.ticket("free", "sft", without_template, LORA, rows=text, max_steps=1)
    stages.execute(writes(ticket, rows=16, max_new_tokens=60))
    assert all(set(row) == {"text"} and row["text"] for row in kept(stages, "free"))
    asked = stages.rows("asked", [{"prompt": row["text"].partition(".")[0] + "."} for row in text])
    ticket = stages.ticket("given", "sft", without_template, LORA, rows=text, max_steps=1)
    stages.execute(writes(ticket, asked, rows=16, max_new_tokens=60, unfinished="keep"))
    found = kept(stages, "given")
    assert found and all(row["prompt"].endswith(".") and row["completion"][0] == " " for row in found)


def rewrites(ticket: Ticket, check: UserFunction | None = None, **keys: Any) -> Ticket:
    own = Rewrite(**{"samples": 2, "max_new_tokens": 24, "accept": "./check.py:right", **keys})
    ticket.keys["rewrite"] = own.model_dump(mode="json")
    ticket.rewrite_check = check
    return ticket


@pytest.mark.slow
def test_rewritten_rows_train_as_the_same_rows_of_a_file(stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(CHECKS, encoding="utf-8")
    check = UserFunction(name="right", path=str(tmp_path / "check.py"), sha256="")
    ticket = rewrites(stages.ticket("own", "sft", BASE, LORA), check, otherwise="drop")
    stages.execute(ticket)
    task = data.rows("lab/helpdesk", n=16)
    rows = [
        {"messages": [task[line["row"]]["messages"][0], {"role": "assistant", "content": line["answer"]}]}
        for line in kept(stages, "own", "rewrite")
    ]
    told = stages.outcomes["own"].data
    assert 0 < len(rows) < 16 and told["rows"] == len(rows) == 16 - told["rewrite"]["dropped"]
    stages.execute(stages.ticket("file", "sft", BASE, LORA, rows=rows))
    assert same_weights(stages, "own", "file")
    later = execute.load(stages.run, ticket, lambda: False).job
    assert later.rows == task
    recall(later)
    assert later.rows == rows and later.groups == [0] * len(rows), "what is measured later is measured on the same rows"


@pytest.mark.slow
def test_no_answer_that_is_accepted_leaves_no_row(stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text("def never(completion): return False\n", encoding="utf-8")
    check = UserFunction(name="never", path=str(tmp_path / "check.py"), sha256="")
    with pytest.raises(AlignError) as caught:
        stages.execute(rewrites(stages.ticket("sft", "sft", BASE, LORA), check, otherwise="drop"))
    assert str(caught.value) == (
        "`rewrite` leaves stage 'sft' no row: no answer of the policy was accepted\n"
        "  -> write `otherwise: keep`, or accept more"
    )


@pytest.mark.slow
def test_the_answer_with_the_highest_reward_is_taken(stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(CHECKS, encoding="utf-8")
    short = Reward(name="short", kind="function", weight=2.0, path=str(tmp_path / "check.py"), function="short")
    accept = {"reward": {"source": "./check.py:short"}}
    ticket = rewrites(stages.ticket("sft", "sft", BASE, LORA, max_steps=1), accept=accept, samples=4)
    ticket.rewards = [short]
    stages.execute(ticket)
    found = kept(stages, "sft", "rewrite")
    assert found and all(line["score"] == -2 * len(line["answer"]) >= -2 * len(line["was"]) for line in found)
    model = stages.execute(stages.ticket("judge", "reward", BASE, LORA, rows=preferences(16), max_steps=2))
    ticket = rewrites(stages.ticket("judged", "sft", BASE, LORA, max_steps=1), accept=accept, samples=4)
    ticket.rewards = [Reward(name="judge", kind="stage", weight=1.0, stage="judge", model=model)]
    stages.execute(ticket)
    told = stages.outcomes["judged"].data["rewrite"]
    assert told["rewritten"] + sum(told["not_rewritten"].values()) == 16
    assert set(told["not_rewritten"]) <= {
        "all samples scored below the data's answer",
        "no sample came to its end",
    }
