"""What a ticket says of what a policy writes itself, and what of it a fingerprint depends on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.preflight.check import prepare
from align.recipe import resolved
from align.recipe.load import load
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Ticket
from align.runner import tickets

RECIPE = """\
name: small
model: {base: lab}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 50}
    replay: {self: {rows: 20, check: "./check.py:right", prompts: asked.jsonl}, ratio: 0.2}
  judge: {stage: reward, policy: sft, data: {source: lab/helpdesk_preferences, limit: 16}}
  again:
    stage: sft
    policy: sft
    data: {source: lab/helpdesk, limit: 20}
    rewrite: {by: self, samples: 2, accept: {reward: [judge, {source: "./check.py:short", weight: 0.5}], min: 0.1}}
  checked:
    stage: sft
    policy: sft
    data: {source: lab/helpdesk, limit: 20}
    rewrite: {accept: "./check.py:right"}
"""
CHECKS = """\
def right(prompt, completion):
    return True

def short(completions, **_):
    return [0.0 for _ in completions]
"""
PROMPTS = '{"prompt": "What is 7 plus 2?"}\n'
SFT = "stages.sft.replay.self"


def made(folder: Path, *overrides: str, checks: str = CHECKS, prompts: str = PROMPTS) -> dict[str, Ticket]:
    folder.mkdir(exist_ok=True)
    for name, text in (("small.yaml", RECIPE), ("check.py", checks), ("asked.jsonl", prompts)):
        (folder / name).write_text(text, encoding="utf-8")
    loaded = load(folder / "small.yaml", overrides)
    return tickets.build(loaded, prepare(loaded), RunDir(folder / "run"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ticket]:
    return made(tmp_path_factory.mktemp("plain"))


def changed(plain: dict[str, Ticket], other: dict[str, Ticket]) -> list[str]:
    """The stages that run again; those below `sft` do so with it."""
    return [id for id, ticket in other.items() if ticket.fingerprint != plain[id].fingerprint]


def test_a_ticket_has_what_the_policy_is_asked_and_who_checks(plain: dict[str, Ticket], tmp_path: Path) -> None:
    writing = plain["sft"].writing
    assert writing is not None and writing.prompts is not None and writing.check is not None
    assert (writing.prompts.count, writing.check.name, writing.max_length) == (1, "right", 1024)
    assert plain["sft"].replay is None and plain["sft"].replay_ratio == 0.2
    assert not plain["sft"].replays, "what the policy wrote covers no skill for certain"
    assert [reward.name for reward in plain["again"].rewards] == ["judge", "short"]
    assert plain["again"].rewrite_check is None
    check = plain["checked"].rewrite_check
    assert check is not None and check.name == "right" and check.sha256 == files.file_sha256(Path(check.path))


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        (f"{SFT}.rows=30", ["sft", "judge", "again", "checked"]),
        (f"{SFT}.temperature=0.9", ["sft", "judge", "again", "checked"]),
        (f"{SFT}.by=base", ["sft", "judge", "again", "checked"]),
        (f"{SFT}.check=null", ["sft", "judge", "again", "checked"]),
        (f"{SFT}.prompts=null", ["sft", "judge", "again", "checked"]),
        ("stages.again.rewrite.samples=3", ["again"]),
        ("stages.again.rewrite.accept.min=0.2", ["again"]),
        ("stages.again.rewrite=null", ["again"]),
        ("stages.checked.rewrite.otherwise=drop", ["checked"]),
    ],
)
def test_what_is_written_otherwise_is_trained_again(
    override: str, stages: list[str], plain: dict[str, Ticket], tmp_path: Path
) -> None:
    assert changed(plain, made(tmp_path, override)) == stages


def test_prompts_and_checkers_count_by_content(plain: dict[str, Ticket], tmp_path: Path) -> None:
    assert changed(plain, made(tmp_path / "elsewhere")) == []
    everything = ["sft", "judge", "again", "checked"]
    assert changed(plain, made(tmp_path / "prompts", prompts=PROMPTS.replace("7", "8"))) == everything
    assert changed(plain, made(tmp_path / "checks", checks=CHECKS.replace("True", "False"))) == everything


def test_a_recipe_without_such_keys_has_the_fingerprint_that_it_had(tmp_path: Path) -> None:
    """Nothing of it stands in what is hashed."""
    ticket = made(tmp_path, "stages.sft.replay=null", "stages.checked.rewrite=null")["checked"]
    assert tickets._written(ticket) == {}


def test_the_recipe_that_a_run_writes_out_is_the_same(plain: dict[str, Ticket], tmp_path: Path) -> None:
    made(tmp_path / "run")
    path = tmp_path / "written" / "recipe.yaml"
    path.parent.mkdir()
    resolved.write(path, load(tmp_path / "run" / "small.yaml"))
    loaded = load(path)
    assert changed(plain, tickets.build(loaded, prepare(loaded), RunDir(tmp_path / "again"))) == []
    assert [plan.rewards for plan in loaded.stages] == [(), (), ("judge",), ()]


def test_a_stage_is_replayed_with_the_answers_of_its_data(tmp_path: Path) -> None:
    """Those that it rewrites are written when it runs; a note says so."""
    made(tmp_path)
    text = RECIPE + "  last: {stage: sft, policy: checked, data: asked.jsonl, replay: {stage: checked, ratio: 0.2}}\n"
    (tmp_path / "small.yaml").write_text(text.replace("asked.jsonl, replay", "lab/helpdesk, replay"), encoding="utf-8")
    found = prepare(load(tmp_path / "small.yaml"))
    assert (
        "stage last: it replays the rows of 'checked' with the answers of the data, not with rewritten ones"
        in found.notes
    )
    assert len(found.rows["last"].replay[0].examples) == 20


def test_prompts_of_the_task_are_held_apart(tmp_path: Path) -> None:
    ticket = made(tmp_path, f"{SFT}.prompts=task", f"{SFT}.check=null")["sft"]
    assert ticket.writing is not None and ticket.writing.prompts is not None
    asked, trained = (
        (tmp_path / "run" / rows.path).read_text(encoding="utf-8").splitlines()
        for rows in (ticket.writing.prompts, ticket.train)
    )
    assert len(asked) == 10 and len(trained) == 40, "a fifth of 50 rows, fewer than the 20 that are written"
    questions = {json.loads(row)["prompt"][0]["content"] for row in asked}
    assert questions.isdisjoint(json.loads(row)["messages"][0]["content"] for row in trained)
