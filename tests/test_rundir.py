"""The run folder: whole files or none, whole checkpoints or none, one process at a time, and nothing overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from align.errors import AlignError
from align.run_folder import checkpoints, files, messages, reading
from align.run_folder.paths import RunDir


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    files.write_json(path, {"status": "old"})
    for name in ("fsync", "replace"):  # while the content is written, and when it takes the old one's place
        with monkeypatch.context() as broken:
            broken.setattr(os, name, _no_space)
            with pytest.raises(OSError, match="No space left"):
                files.write_json(path, {"status": "new"})
        assert json.loads(path.read_text()) == {"status": "old"}
        assert [p.name for p in tmp_path.iterdir()] == ["run.json"], "nothing is left beside it"
    with pytest.raises(TypeError):
        files.write_json(path, {"status": object()})
    assert json.loads(path.read_text()) == {"status": "old"}


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_write_is_whole_before_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "outcome.json"
    seen: list[tuple[str, bool]] = []
    replace = os.replace

    def watched(source: str, target: Path) -> None:
        seen.append((Path(source).read_text(encoding="utf-8"), target.exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    files.write_text(path, "naïve\n")
    assert seen == [("naïve\n", False)]
    assert path.read_bytes() == "naïve\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644, "others may read a run"


def test_a_folder_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path, before = tmp_path / "a" / "b" / "out", os.umask(0o077)
    try:
        with files.whole_folder(path) as folder:
            (folder / "weights").write_text("x")
            assert not (tmp_path / "a").exists()
    finally:
        os.umask(before)
    assert [p.name for p in path.iterdir()] == ["weights"] and path.stat().st_mode & 0o777 == 0o755, (
        "others may read it"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(ValueError, match="inside"), files.whole_folder(tmp_path / "c" / "out") as folder:
        (folder / "weights").write_text("x")
        raise ValueError("inside")
    assert [p.name for p in tmp_path.iterdir()] == ["a"], "nothing is left"


@pytest.mark.parametrize("below", ["out", "far/out"])
def test_a_folder_that_cannot_be_made_is_told_before_it_is_filled(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / below
    with pytest.raises(AlignError) as caught, files.whole_folder(path):
        pytest.fail("it was begun")
    assert str(caught.value) == f"'{path}' cannot be written: Not a directory\n  -> give another folder"


def test_a_torn_file_reads_as_if_it_were_not_there(tmp_path: Path) -> None:
    for text in ("", '{"status": "do', "\x80"):
        (tmp_path / "torn.json").write_bytes(text.encode("latin-1"))
        assert files.read_json(tmp_path / "torn.json", {"none": 1}) == {"none": 1}
    assert files.read_json(tmp_path / "missing.json") is None
    assert files.read_json(tmp_path / "torn.json" / "below.json") is None


def test_a_digest_does_not_hang_on_the_order_of_keys() -> None:
    one, two = {"a": 1, "b": [1, {"c": 2, "d": 3}]}, {"b": [1, {"d": 3, "c": 2}], "a": 1}
    assert files.digest(one) == files.digest(two)
    assert files.digest(one) != files.digest({"a": 1, "b": [{"c": 2, "d": 3}, 1]})
    assert files.digest("é") == hashlib.sha256('"é"'.encode()).hexdigest()


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "global").mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(bytes(range(256)) * step)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (path / "global" / "rng_state_0.pth").write_bytes(b"rng")
    checkpoints.seal(path)
    return path


def test_the_seal_names_every_file(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 2)
    weights = path / "adapter_model.safetensors"
    recorded = json.loads((path / "complete.json").read_text())["files"]
    assert set(recorded) == {"adapter_model.safetensors", "trainer_state.json", "global/rng_state_0.pth"}
    assert recorded["adapter_model.safetensors"] == {
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "bytes": 512,
    }


def test_the_last_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints.whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10", "by number, not by name"
    assert len(list(tmp_path.iterdir())) == 4, "whole ones stay"
    assert checkpoints.whole_checkpoint(tmp_path / "none") is None


def unsealed(path: Path) -> None:
    (path / "complete.json").unlink()


def half_sealed(path: Path) -> None:
    text = (path / "complete.json").read_text()
    (path / "complete.json").write_text(text[: len(text) // 2])


def shorter(path: Path) -> None:
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flipped(path: Path) -> None:
    """One bit, with the size and the time as they were."""
    file = path / "adapter_model.safetensors"
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def missing(path: Path) -> None:
    (path / "global" / "rng_state_0.pth").unlink()


@pytest.mark.parametrize("tear", [unsealed, half_sealed, shorter, flipped, missing])
def test_a_torn_checkpoint_gives_way_to_the_one_before(tear: Callable[[Path], None], tmp_path: Path) -> None:
    checkpoint(tmp_path, 3)
    checkpoint(tmp_path, 6)
    tear(checkpoint(tmp_path, 9))
    assert checkpoints.whole_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-6"]
    tear(tmp_path / "checkpoint-6")
    tear(tmp_path / "checkpoint-3")
    assert checkpoints.whole_checkpoint(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_damage_is_looked_for_cheapest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes before hashes; times tell nothing."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"12345")
        os.utime(tmp_path / name, (1000, 1000))
    recorded = files.artifacts(tmp_path, tmp_path)
    hashed: list[str] = []
    sha256 = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: hashed.append(path.name) or sha256(path))

    assert files.damaged(recorded, tmp_path) is None
    assert hashed == ["a", "b", "c"]
    (tmp_path / "b").write_bytes(b"54321")
    os.utime(tmp_path / "b", (1000, 1000))
    assert files.damaged(recorded, tmp_path) == "b"
    hashed.clear()
    (tmp_path / "a").write_bytes(b"123456")
    assert files.damaged(recorded, tmp_path) == "a"
    assert hashed == [], "the size told"
    (tmp_path / "a").unlink()
    assert files.damaged(recorded, tmp_path) == "a"


def test_a_message_that_was_not_sent_yet_is_none(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert messages.receive(run, 1) is None
    files.write_text(run.queue / "1.json", '{"do": "exec')
    assert messages.receive(run, 1) is None, "torn"
    messages.send(run, 1, messages.Execute(stage="sft"))
    messages.send(run, 2, messages.Finish())
    assert messages.receive(run, 1) == messages.Execute(stage="sft")
    assert messages.receive(run, 2) == messages.Finish()


def test_a_torn_outcome_is_none(tmp_path: Path) -> None:
    stage = RunDir(tmp_path).stage("sft")
    assert reading.outcome(stage) is None
    files.write_text(stage.outcome, '{"format": 1, "sta')
    assert reading.outcome(stage) is None


HOLD = """
import sys
from pathlib import Path
from align.run_folder.paths import RunDir
with RunDir(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_holds_a_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin and holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AlignError) as caught, run.locked():
            pass
        assert str(caught.value) == (
            f"the run folder '{run.root}' is in use by process {holder.pid}\n"
            "  -> wait for it to end, or give another --run-dir"
        )
        holder.kill()  # no process has to tidy up after itself
        holder.wait()
    with run.locked():
        assert json.loads((run.root / ".holder").read_text()) == {"pid": os.getpid()}


def test_a_run_is_held_while_a_process_is_at_work_on_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with run.locked():
        assert run.is_held()
        (run.root / ".holder").unlink()
        with pytest.raises(AlignError) as caught, RunDir(tmp_path).locked():
            pass
    assert caught.value.what == f"the run folder '{tmp_path}' is in use by another process"
    assert not run.is_held()
    with run.locked():  # to have looked at it holds nothing
        pass


def test_a_run_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "run"
    with pytest.raises(AlignError) as caught, RunDir(root).locked():
        pass
    assert str(caught.value) == (
        f"the run folder '{root}' cannot be written (Not a directory)\n  -> give another --run-dir"
    )


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(ValueError, match="inside"), run.locked():
        raise ValueError("inside")
    with run.locked():
        pass


def test_nothing_superseded_is_overwritten(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for content in ("first", "second", "third"):
        stage = run.stage("sft")
        files.write_text(stage.outcome, content)
        run.supersede(stage.root)
        assert not stage.root.exists()
    kept = sorted((tmp_path / "superseded").iterdir())
    assert [(p / "outcome.json").read_text() for p in kept] == ["first", "second", "third"], "their names tell when"
    assert all(p.name.endswith("-sft") for p in kept)
    run.supersede(run.stage("never").root)
    assert len(list((tmp_path / "superseded").iterdir())) == 3
