"""Files of a run that are missing, cut, altered or of another shape: found by their hashes, never used in silence."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

import runs
from align.cli import guard
from align.errors import AlignError, Exit
from align.forgetting import measurements
from align.policy import base as bases
from align.policy import stack
from align.run_folder import checkpoints, files, reading
from align.run_folder.paths import RunDir
from align.run_folder.run_record import RunRecord
from align.trainers import kept_reference


class Record(BaseModel):
    steps: int


@pytest.mark.parametrize("value", [{}, [], {"steps": "x"}, 3, {**files.sealed({"steps": 3}), "steps": 4}])
def test_a_record_of_another_shape_or_that_was_altered_is_none(value: Any, tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", value)
    assert reading.whole(tmp_path / "a.json", Record) is None


@pytest.mark.parametrize("value", [{"steps": 3}, files.sealed({"steps": 3})])
def test_a_record_is_read_with_and_without_its_seal(value: Any, tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", value)
    assert reading.whole(tmp_path / "a.json", Record) == Record(steps=3)


@pytest.mark.parametrize("text", ["[" * 100_000, f'{{"a": {"9" * 5000}}}', "\x00", '"\xff'])
def test_json_that_nothing_can_read_is_as_if_it_was_not_written(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    assert files.read_json(path) is None and reading.lines(path) == []
    with pytest.raises(AlignError, match=r"a\.json.*: the file is damaged"):
        reading.read(path, Record)


def test_a_seal_over_half_a_character(tmp_path: Path) -> None:
    assert files.unsealed({"a": "\ud800", "seal": "x"}) is None


def test_a_disk_that_fails_is_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.symlink_to("/proc/self/mem")
    for read in (files.read_json, files.file_sha256, reading.text):
        with pytest.raises(OSError, match="Input/output error") as error:
            read(path)
        assert error.value.filename == str(path)


def test_a_file_where_a_folder_belongs_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").touch()

    def command() -> None:
        files.write_text(tmp_path / "data/x.json", "{}")

    assert guard.guarded(command) == Exit.MACHINE


@pytest.mark.parametrize("changed", [{"created": "2026x-11-30"}, {"stages": {"sft": {"stage": "sft", "started": "x"}}}])
def test_a_record_with_a_time_that_is_none_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    files.write_json(tmp_path / "run.json", {"name": "a", **changed})
    with pytest.raises(AlignError, match="Invalid isoformat"):
        reading.sound(tmp_path / "run.json", RunRecord, reading.OTHER)


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(b"moments")
    (path / "trainer_state.json").write_text("{}")
    checkpoints.seal(path)
    return path


def altered(path: Path) -> None:
    """One bit, under the old size and time."""
    stat, held = path.stat(), bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    (path / "optimizer.pt").unlink()


def recorded(value: Any) -> Callable[[Path], None]:
    return lambda path: files.write_json(path / checkpoints.COMPLETE, value)


def without_the_optimizer(path: Path) -> None:
    (path / "optimizer.pt").unlink()
    found = files.read_object(path / checkpoints.COMPLETE)
    del found["files"]["optimizer.pt"]
    files.write_json(path / checkpoints.COMPLETE, found)


@pytest.mark.parametrize(
    "harm",
    [
        *(recorded(value) for value in ({}, [], {"files": []}, {"files": {}}, {"files": {"optimizer.pt": {}}})),
        without_the_optimizer,
        linked,
        lambda path: (shutil.rmtree(path), path.symlink_to("nowhere")),
        lambda path: (shutil.rmtree(path), path.write_text("")),
        lambda path: altered(path / "optimizer.pt"),
        lambda path: (path / "trainer_state.json").unlink(),
    ],
)
def test_a_checkpoint_that_is_not_whole_gives_way_to_the_one_before(
    harm: Callable[[Path], Any], tmp_path: Path
) -> None:
    first, second = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    harm(second)
    assert checkpoints.whole_checkpoint(tmp_path) == first
    assert not second.exists() and not second.is_symlink()


def test_a_checkpoint_behind_a_link_is_one(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 2)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to("elsewhere")
    assert checkpoints.whole_checkpoint(tmp_path) == path


@pytest.mark.parametrize("record", [{}, [], 3, {"bytes": 1}])
def test_a_file_of_which_nothing_is_known_is_damaged(record: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert files.damaged({"a": record}, tmp_path) == "a"


def measured(folder: Path) -> Path:
    files.write_text(folder / "items.jsonl", '{"score": 1}\n{"score": 0}\n')
    held = {"items.jsonl": files.file_sha256(folder / "items.jsonl")}
    files.write_json(folder / "summary.json", files.sealed({"probes": {}, "scores": {}, "files": held}))
    return folder


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: altered(folder / "items.jsonl"),
        lambda folder: altered(folder / "summary.json"),
        lambda folder: (folder / "items.jsonl").unlink(),
        lambda folder: (folder / "items.jsonl").write_text('{"score": 1}\n{"sc'),
        *(lambda folder, value=value: files.write_json(folder / "summary.json", value) for value in ({}, [], 3)),
    ],
)
def test_a_measurement_that_was_altered_is_not_whole(harm: Callable[[Path], Any], tmp_path: Path) -> None:
    assert measurements.is_whole(measured(tmp_path))
    harm(tmp_path)
    assert not measurements.is_whole(tmp_path)


def test_a_reference_that_was_altered_is_made_anew(tmp_path: Path) -> None:
    file, split = tmp_path / "reference-train.safetensors", {"batch": "2", "processes": "1"}
    columns = {kept_reference.ROWS: torch.tensor([1, 0]), "chosen": torch.tensor([-1.0, -2.0])}
    save_file(columns, file, metadata=split | {"sha256": kept_reference._digest(columns)})
    found = kept_reference._read(file, split, [1, 0])
    assert found is not None and found["chosen"].tolist() == [-1.0, -2.0]
    whole = file.read_bytes()
    for torn in (whole[:20], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(torn)
        assert kept_reference._read(file, split, [1, 0]) is None


def test_a_part_of_a_run_on_another_disk_is_moved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)
    run.stage("sft").root.mkdir(parents=True)
    (run.stage("sft").root / "outcome.json").write_text("{}")

    def across(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "replace", across)
    run.supersede(run.stage("sft").root)
    (moved,) = run.superseded.iterdir()
    assert (moved / "outcome.json").read_text() == "{}" and not run.stage("sft").root.exists()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("victim")])
def test_a_lock_that_is_no_file_is_refused_and_nothing_is_made(make: Callable[[Path], Any], tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    make(run.root / ".lock")
    assert not run.is_held()
    with pytest.raises(AlignError, match="is a folder or a link, not a file of align's"), run.locked():
        pytest.fail("it was locked")
    assert not (run.root / "victim").exists()


def test_an_index_that_names_pickled_weights_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "decoy.safetensors")
    for named in ("pytorch_model.bin", "../model.safetensors"):
        files.write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"a": named}})
        with pytest.raises(AlignError, match="weights are read from safetensors files beside it alone"):
            bases._check_weights("mine", tmp_path)


def test_an_adapter_of_pickled_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(AlignError, match=r"has no adapter_model\.safetensors"):
        stack._safe(tmp_path)


RECIPE = """\
name: damage
seed: 3
model: {base: lab, dtype: float32}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 32}
    training: {learning_rate: 1.0e-3, max_steps: 3, per_device_train_batch_size: 4, bf16: false}
  dpo:
    policy: sft
    data: {source: lab/helpdesk_preferences, limit: 32}
    training: {learning_rate: 5.0e-4, max_steps: 3, per_device_train_batch_size: 4, bf16: false}
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    runs.run(runs.write(folder, RECIPE), folder / "run")
    return folder


def digit(run: Path) -> None:
    outcome = run / "stages/sft/outcome.json"
    outcome.write_text(outcome.read_text().replace('"r": 16', '"r": 26', 1))


def rot(run: Path) -> None:
    shutil.rmtree(run / "stages/dpo")
    altered(run / "stages/sft/model/adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda run: (run / "stages/sft/outcome.json").write_text("{}"), "its outcome.json is damaged; it runs again"),
        (digit, "its outcome.json is damaged; it runs again"),
        (rot, "its result has a damaged file, model/adapter_model.safetensors; it runs again"),
        (lambda run: (run / "recipe.yaml").write_bytes(b"\xff"), "done already"),
        (lambda run: next((run / "data").iterdir()).write_bytes(b"\xff"), "done already"),
        (lambda run: files.write_json(run / "base/identity.json", {"files": [1]}), "done already"),
    ],
)
def test_the_same_command_ends_with_the_same_weights(
    harm: Callable[[Path], Any], says: str, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "copy")
    run = tmp_path / "copy/run"
    harm(run)
    said = runs.run(tmp_path / "copy/small.yaml", run).stderr
    assert says in " ".join(said.split())
    assert runs.weights(run) == runs.weights(undisturbed / "run")
