"""What the fingerprint of a stage depends on: all that its weights depend on, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.errors import AlignError
from align.preflight.check import prepare
from align.recipe.load import load
from align.recipe.plan import StagePlan
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Policy, Rows, Ticket
from align.runner import tickets

RECIPE = """\
name: small
seed: 3
model: {base: lab, dtype: bfloat16}
pipeline: sft_dpo
parameterization: {method: lora, lora: {r: 8}}
replay: {data: {source: lab/general, limit: 40}, ratio: 0.25}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 24}
    training: {learning_rate: 1.0e-3, max_steps: 12, per_device_train_batch_size: 8}
  dpo:
    data: {source: lab/helpdesk_preferences, limit: 16}
    training: {learning_rate: 2.0e-4, max_steps: 8, per_device_train_batch_size: 4}
"""

REWARDED = """\
name: small
model: {base: lab}
pipeline: rlhf
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft: {data: {source: lab/helpdesk, limit: 16}}
  reward: {data: {source: lab/helpdesk_preferences, limit: 16}}
  ppo:
    data: {source: lab/helpdesk, limit: 16}
    reward: [{source: reward}, {source: "own.py:short"}]
    training: {max_steps: 4, per_device_train_batch_size: 8, steps_per_generation: 2}
"""
OWN = "def short(completions, **_):\n    return [0.0 for _ in completions]\n"
OWN += OWN.replace("short", "long")


def written(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    return path


def made(folder: Path, *overrides: str, text: str = RECIPE) -> dict[str, Ticket]:
    """The tickets of the recipe with `--set` overrides."""
    loaded = load(written(folder, text), overrides)
    return tickets.build(loaded, prepare(loaded), RunDir(folder / "run"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = made(tmp_path_factory.mktemp("plain"))
    return {stage: ticket.fingerprint for stage, ticket in found.items()}


@pytest.fixture(scope="module")
def plain_rewarded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = made(tmp_path_factory.mktemp("plain_rewarded"), text=REWARDED)
    return {stage: ticket.fingerprint for stage, ticket in found.items()}


def changed(folder: Path, plain: dict[str, str], *overrides: str) -> list[str]:
    return [stage for stage, ticket in made(folder, *overrides).items() if ticket.fingerprint != plain[stage]]


@pytest.mark.parametrize(
    "override",
    [
        "seed=4",
        "model.dtype=float32",
        "parameterization.lora.r=4",
        "replay.ratio=0.5",
        "stages.sft.training.learning_rate=2.0e-3",
        "stages.sft.training.max_steps=13",
        "stages.sft.training.per_device_train_batch_size=4",
        "stages.sft.data.limit=23",
        "stages.sft.turns=last",
        "stages.sft.ewc={data: {source: lab/general, limit: 20}, rows: 8}",
        "stages.sft.l2_sp=0.01",
        "stages.sft.kl_coef=0.1",
        "stages.sft.mask_above_perplexity=2.5",
    ],
)
def test_what_the_first_stage_trains_differently_the_second_does_too(
    override: str, tmp_path: Path, plain: dict[str, str]
) -> None:
    assert changed(tmp_path, plain, override) == ["sft", "dpo"]


def test_what_an_adapter_trains_in_counts_where_it_is_not_the_default(tmp_path: Path) -> None:
    """Runs from before the key was there are not trained again."""
    plain, same, coarse = (
        made(tmp_path, f"parameterization={{method: qlora{more}}}")
        for more in ("", ", adapter_dtype: float32", ", adapter_dtype: bfloat16")
    )
    assert "adapter_dtype" not in plain["sft"].parameterization
    assert same["sft"].fingerprint == plain["sft"].fingerprint != coarse["sft"].fingerprint


def test_a_key_that_came_later_counts_where_it_is_not_at_its_default(tmp_path: Path) -> None:
    """Tickets of an older align have no such key, and their stages are not trained again."""
    plan = load(written(tmp_path)).stages[0]
    ticket = made(tmp_path)["sft"]
    older = ticket.model_copy(update={"keys": {k: v for k, v in ticket.keys.items() if k not in plan.keys.later}})
    assert older.keys != ticket.keys
    assert tickets.fingerprint(plan, older, ["base"]) == ticket.fingerprint


def test_a_stage_goes_on_from_what_was_decided(tmp_path: Path, plain: dict[str, str]) -> None:
    """Its fingerprint is taken again when its turn comes: by then the stage before it has been decided on."""
    run, loaded = RunDir(tmp_path / "run"), load(written(tmp_path), ())
    found = tickets.build(loaded, prepare(loaded), run)
    files.write_json(run.stage("sft").decision, {"policy": "as_trained"})
    for plan in loaded.stages:
        tickets.seal(plan, loaded, found, run)
    assert {stage: ticket.fingerprint for stage, ticket in found.items()} == plain
    files.write_json(run.stage("sft").decision, {"policy": "another"})
    for plan in loaded.stages:
        tickets.seal(plan, loaded, found, run)
    assert found["sft"].fingerprint == plain["sft"] and found["dpo"].fingerprint != plain["dpo"]


@pytest.mark.parametrize("override", ["stages.dpo.beta=0.2", "stages.dpo.training.learning_rate=1.0e-4"])
def test_a_key_of_the_second_stage_leaves_the_first_alone(override: str, tmp_path: Path, plain: dict[str, str]) -> None:
    assert changed(tmp_path, plain, override) == ["dpo"]


@pytest.mark.parametrize(
    "override",
    [
        "stages.sft.training.logging_steps=1",
        "stages.sft.training.save_steps=3",
        "stages.sft.training={learning_rate: 1.0e-3, max_steps: 12, per_device_train_batch_size: 4, "
        "gradient_accumulation_steps: 2}",
        "forgetting.max_drop=0.3",
        "forgetting.probes=auto",
        "trackers=[tensorboard]",
        "stages.sft.ewc={data: {source: lab/general, limit: 20}, weight: 0}",
        "stages.sft.l2_sp=0",
        "stages.sft.kl_coef=0",
    ],
)
def test_what_is_only_shown_or_measured_trains_nothing_again(
    override: str, tmp_path: Path, plain: dict[str, str]
) -> None:
    assert changed(tmp_path, plain, override) == []


@pytest.mark.parametrize("key", ["weight: 0.5", "rows: 7", "fisher: sampled", "data: {source: lab/general, limit: 19}"])
def test_everything_that_ewc_is_made_of_counts(key: str, tmp_path: Path) -> None:
    """Its rows by their content, as they are drawn."""
    given = dict(part.split(": ", 1) for part in ("weight: 1.0", "rows: 8", "fisher: empirical"))
    given["data"] = "{source: lab/general, limit: 20}"
    found = []
    for one in (given, given | dict([key.split(": ", 1)])):
        keys = ", ".join(f"{name}: {value}" for name, value in one.items())
        found.append(made(tmp_path, f"stages.sft.ewc={{{keys}}}")["sft"])
    assert found[0].fingerprint != found[1].fingerprint
    assert found[0].fisher is not None and found[0].fisher.count == 8
    assert (found[0].fisher.sha256 == found[1].fisher.sha256) == (key.split(":")[0] in ("weight", "fisher"))


def test_two_processes_with_half_the_batch_are_the_same_training(tmp_path: Path, plain: dict[str, str]) -> None:
    halves = (f"stages.{stage}.training.per_device_train_batch_size={size}" for stage, size in (("sft", 4), ("dpo", 2)))
    two = made(tmp_path, *halves, "launch.processes=2")
    assert {stage: ticket.fingerprint for stage, ticket in two.items()} == plain


def test_what_was_decided_on_a_policy_is_part_of_what_follows(tmp_path: Path, plain: dict[str, str]) -> None:
    run = RunDir(tmp_path / "run")
    files.write_json(run.stage("sft").decision, {"policy": "another"})
    assert changed(tmp_path, plain) == ["dpo"]


# ---- what cannot be said by one key of the recipe -------------------------------------------------------------------


def rows(content: str) -> Rows:
    return Rows(path="data/x.parquet", sha256=content, count=1, kinds=["chat"])


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> tuple[StagePlan, Ticket]:
    """The stage `ppo`, with every kind of rows."""
    folder = tmp_path_factory.mktemp("rewarded")
    plan = next(plan for plan in load(written(folder, REWARDED)).stages if plan.id == "ppo")
    ticket = made(folder, text=REWARDED)["ppo"]
    return plan, ticket.model_copy(update={"evaluation": rows("held out"), "replay": rows("old"), "replay_ratio": 0.2})


@pytest.mark.parametrize(
    "content",
    [
        {"train": rows("others")},
        {"evaluation": rows("others")},
        {"replay": rows("others")},
        {"replay_ratio": 0.5},
        {"chat_template": "{{ messages }}"},
        {"policy": Policy(base=BaseModelIdentity(name="lab", path="lab", identity="another"))},
    ],
    ids=lambda content: next(iter(content)),
)
def test_content_counts(content: dict[str, Any], rewarded: tuple[StagePlan, Ticket]) -> None:
    plan, ticket = rewarded
    other = ticket.model_copy(update=content)
    assert tickets.fingerprint(plan, other, ["base"]) != tickets.fingerprint(plan, ticket, ["base"])


def test_special_tokens_of_the_recipe_count(rewarded: tuple[StagePlan, Ticket]) -> None:
    plan, ticket = rewarded
    found = {
        tickets.fingerprint(plan, ticket.model_copy(update={"model": ticket.model | tokens}), ["base"])
        for tokens in ({}, {"eos_token": "</s>"}, {"pad_token": "</s>"}, {"eos_token": "</s>", "pad_token": "</s>"})
    }
    assert len(found) == 4


def test_where_things_lie_and_what_they_are_called_does_not_count(rewarded: tuple[StagePlan, Ticket]) -> None:
    plan, ticket = rewarded
    base = ticket.policy.base.model_copy(update={"path": "/elsewhere"})
    names = {"run_name": "x", "trackers": ["wandb"], "resume_from": "x", "warnings": ["x"], "program_path": "x"}
    other = ticket.model_copy(update={**names, "policy": Policy(base=base), "probes": "lab", "probes_sha256": "x"})
    assert tickets.fingerprint(plan, other, ["base"]) == tickets.fingerprint(plan, ticket, ["base"])


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("stages.reward.training.max_steps=3", ["reward", "ppo"]),
        ("stages.ppo.reward=[{source: reward, weight: 0.5}, {source: own.py:short}]", ["ppo"]),
        ("stages.ppo.reward=[{source: reward}, {source: own.py:long}]", ["ppo"]),
        ("stages.ppo.reward=reward", ["ppo"]),
        # the same rows in an update, of half as large a rollout
        ("stages.ppo.training={max_steps: 4, per_device_train_batch_size: 4, gradient_accumulation_steps: 2, "
        "steps_per_generation: 2}", ["ppo"]),
        ("stages.ppo.training.logging_steps=1", []),
    ],
)  # fmt: skip
def test_what_a_policy_is_rewarded_by_counts(
    override: str, stages: list[str], tmp_path: Path, plain_rewarded: dict[str, str]
) -> None:
    other = made(tmp_path, override, text=REWARDED)
    assert [id for id, ticket in other.items() if ticket.fingerprint != plain_rewarded[id]] == stages


def test_another_function_under_the_same_name_counts(tmp_path: Path) -> None:
    plain = made(tmp_path, text=REWARDED)
    loaded = load(written(tmp_path, REWARDED), ())
    (tmp_path / "own.py").write_text(OWN.replace("0.0", "1.0"), encoding="utf-8")
    other = tickets.build(loaded, prepare(loaded), RunDir(tmp_path / "run"))
    assert [id for id, ticket in other.items() if ticket.fingerprint != plain[id].fingerprint] == ["ppo"]


def test_another_text_of_the_program_counts(tmp_path: Path) -> None:
    """Of a stage of one's own; tests/test_trains_alike.py has the shipped ones."""
    program = 'from align.stage.declaration import Stage\n\nSTAGE = Stage("mine", frozenset({"chat"}), print)\n'
    text = RECIPE.partition("pipeline:")[0] + "stages:\n  sft: {stage: ./mine.py, data: lab/helpdesk}\n"
    found = []
    for added in ("", "# another\n"):
        (tmp_path / "mine.py").write_text(program + added, encoding="utf-8")
        found.append(made(tmp_path, "forgetting.probes=none", text=text)["sft"].fingerprint)
    assert found[0] != found[1]


def test_rows_are_replayed_where_some_are(tmp_path: Path) -> None:
    assert made(tmp_path)["dpo"].replays
    assert not made(tmp_path, "replay.ratio=0.0")["dpo"].replays


def test_the_limits_that_may_end_a_stage_count_and_that_of_the_kl_may_not(tmp_path: Path) -> None:
    early = "forgetting={probes: lab, every: 5, early_stop: true}"
    plain = {stage: ticket.fingerprint for stage, ticket in made(tmp_path, early).items()}
    assert changed(tmp_path, plain, early, "forgetting.max_kl=0.3") == []
    assert changed(tmp_path, plain, early, "forgetting.on_violation=stop") == []
    assert changed(tmp_path, plain, early, "forgetting.max_drop=0.2") == ["sft", "dpo"]


def test_a_skill_of_a_shipped_set_is_watched_beside_a_probe_of_ones_own(tmp_path: Path) -> None:
    sums = "".join(f'{{"prompt": "Sort: c {x} a", "answer": "a {x} c"}}\n' for x in "bdefgh")
    (tmp_path / "sums.jsonl").write_text(sums, encoding="utf-8")
    probes = "forgetting.probes={lab: true, sums: {data: sums.jsonl, metric: exact}}"
    inside = made(tmp_path, probes, "forgetting.every=5", "forgetting.watch=[facts, sums]")["sft"].inside
    assert inside is not None and inside.watch == ["facts", "sums"]
    with pytest.raises(AlignError, match=r"`watch` names lab, but the probes are extract, .*, sums"):
        made(tmp_path, probes, "forgetting.every=5", "forgetting.watch=[lab]")


def test_what_scores_a_probe_is_found_from_anywhere(tmp_path: Path) -> None:
    """Own files and folders by their whole paths; names of the Hub, of the harness and of shipped sets as they are."""
    sums = "".join(f'{{"prompt": "Sort: c {x} a", "answer": "a {x} c"}}\n' for x in "bdefgh")
    for name in ("sums", "gate", "report"):
        (tmp_path / f"{name}.jsonl").write_text(sums.replace("Sort", name), encoding="utf-8")
    (tmp_path / "score.py").write_text("def right(completion): return True\n", encoding="utf-8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("import json\n", encoding="utf-8")
    here = tmp_path.resolve()
    asked = (
        "forgetting.probes={lab: true, halves: {data: {gate: gate.jsonl, report: report.jsonl}, metric: contains}, "
        "own: {data: sums.jsonl, metric: ./score.py:right, tokens: 5}, metric: {data: sums.jsonl, metric: "
        "evaluate:./mine}}"
    )
    assert made(tmp_path, asked)["sft"].probes == {
        "lab": True,
        "halves": {"data": {half: f"{here}/{half}.jsonl" for half in ("gate", "report")}, "metric": "contains"},
        "own": {"data": f"{here}/sums.jsonl", "metric": f"{here}/score.py:right", "tokens": 5},
        "metric": {"data": f"{here}/sums.jsonl", "metric": f"evaluate:{here}/mine"},
    }


def test_probes_are_found_from_anywhere(tmp_path: Path) -> None:
    """The child may work in another folder than the one that the recipe stands in."""
    sums = "".join(f'{{"prompt": "Sort: c {x} a", "completion": "a {x} c"}}\n' for x in "bdefgh")
    (tmp_path / "sums.jsonl").write_text(sums, encoding="utf-8")
    ticket = made(tmp_path, "forgetting.probes={sums: {data: sums.jsonl, metric: accuracy}}")["sft"]
    assert ticket.probes == {"sums": {"data": str((tmp_path / "sums.jsonl").resolve()), "metric": "accuracy"}}
