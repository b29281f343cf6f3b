"""What the fingerprint of a stage depends on: all that its weights depend on, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.preflight.check import prepare
from align.recipe.load import load
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Ticket
from align.runner import tickets

RECIPE = """\
name: small
seed: 3
model: {base: lab, dtype: bfloat16}
pipeline: sft_dpo
parameterization: {method: lora, lora: {r: 8}}
replay: {data: lab/general, ratio: 0.25}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 24}
    training: {learning_rate: 1.0e-3, max_steps: 12, per_device_train_batch_size: 8}
  dpo:
    data: {source: lab/helpdesk_preferences, limit: 16}
    training: {learning_rate: 2.0e-4, max_steps: 8, per_device_train_batch_size: 4}
"""


def written(folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def made(folder: Path, *overrides: str, processes: int = 1) -> dict[str, Ticket]:
    """The tickets of the recipe with `--set` overrides."""
    loaded = load(written(folder), overrides)
    return tickets.build(loaded, prepare(loaded), RunDir(folder / "run"), processes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = made(tmp_path_factory.mktemp("plain"))
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


def test_a_stage_goes_on_from_what_was_decided(tmp_path: Path, plain: dict[str, str]) -> None:
    """Its fingerprint is taken again when its turn comes: by then the stage before it has been decided on."""
    run, loaded = RunDir(tmp_path / "run"), load(written(tmp_path), ())
    found = tickets.build(loaded, prepare(loaded), run, 1)
    files.write_json(run.stage("sft").decision, {"policy": "as_trained"})
    for plan in loaded.stages:
        tickets.seal(plan, found, run)
    assert {stage: ticket.fingerprint for stage, ticket in found.items()} == plain
    files.write_json(run.stage("sft").decision, {"policy": "another"})
    for plan in loaded.stages:
        tickets.seal(plan, found, run)
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
    ],
)
def test_what_is_only_shown_or_measured_trains_nothing_again(
    override: str, tmp_path: Path, plain: dict[str, str]
) -> None:
    assert changed(tmp_path, plain, override) == []


def test_two_processes_with_half_the_batch_are_the_same_training(tmp_path: Path, plain: dict[str, str]) -> None:
    halves = (f"stages.{stage}.training.per_device_train_batch_size={size}" for stage, size in (("sft", 4), ("dpo", 2)))
    two = made(tmp_path, *halves, processes=2)
    assert {stage: ticket.fingerprint for stage, ticket in two.items()} == plain


def test_what_was_decided_on_a_policy_is_part_of_what_follows(tmp_path: Path, plain: dict[str, str]) -> None:
    run = RunDir(tmp_path / "run")
    files.write_json(run.stage("sft").decision, {"policy": "another"})
    assert changed(tmp_path, plain) == ["dpo"]
