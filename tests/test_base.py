"""The base model as files: which name means what, whether it is whole, and what identifies it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from align.errors import AlignError
from align.lab import MODEL_DIR
from align.policy import base


def tensors(values: int) -> bytes:
    """A safetensors file of one tensor of bytes, as its format documentation lays it out."""
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "w": {"dtype": "U8", "shape": [values], "data_offsets": [0, values]}}
    )
    return len(header).to_bytes(8, "little") + header.encode() + bytes(values)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a small model."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(tensors(16))
    return folder


def test_the_lab_model_is_there_and_whole() -> None:
    found = base.resolve("lab", None, root=Path())
    assert (found.path, found.revision, found.config["model_type"]) == (MODEL_DIR, None, "llama")


def test_a_folder_from_the_current_one_then_from_the_recipes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert base.resolve("m", None, root=tmp_path).path == model.resolve()
    shutil.copytree(model, "m")
    assert base.resolve("m", None, root=tmp_path).path == (tmp_path / "here" / "m").resolve()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lab", False),
        ("owner/name", True),
        ("./name", False),
        ("/a", False),
        ("~/a", False),
        ("a", False),
        ("a/b/c", False),
    ],
)
def test_what_can_only_mean_the_hub(name: str, expected: bool, tmp_path: Path) -> None:
    assert base.is_on_hub(name, tmp_path) is expected


def test_a_folder_goes_before_the_hub(model: Path, tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    shutil.copytree(model, tmp_path / "owner" / "name")
    assert not base.is_on_hub("owner/name", tmp_path)
    assert base.resolve("owner/name", None, root=tmp_path).path == (tmp_path / "owner" / "name").resolve()


def test_a_model_of_the_hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is identified by its commit, whichever branch or tag was named."""
    snapshot = tmp_path / "3b1f0c"
    shutil.copytree(model, snapshot)
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **more: asked.update(more, name=name) or snapshot
    )
    found = base.resolve("owner/name", "v1", root=tmp_path)
    assert (asked["name"], asked["revision"]) == ("owner/name", "v1")
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in asked["allow_patterns"])  # no pickle, no code
    assert (found.revision, found.identity()) == ("3b1f0c", "owner/name@3b1f0c")


def test_a_model_of_the_hub_that_is_not_looked_up(tmp_path: Path) -> None:
    assert base.resolve("owner/name", "v1", root=tmp_path, offline=True).path is None


def test_whole_weights_in_several_files(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model-00002-of-00002.safetensors").write_bytes(tensors(8))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert base.check_folder("m", model)["model_type"] == "llama"
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(AlignError) as error:
        base.check_folder("m", model)
    assert error.value.what == "the model 'm' lacks 1 of its 2 weight files, such as model-00002-of-00002.safetensors"


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_weights_that_are_cut_anywhere(model: Path, kept: int) -> None:
    (model / "model.safetensors").write_bytes(tensors(16)[:kept])
    with pytest.raises(AlignError) as error:
        base.check_folder("m", model)
    assert error.value.remedy == "copy or download the model again"


@pytest.mark.parametrize("header", [b"[]", b"1", b'{"w": {}}', b'{"w": {"data_offsets": 1}}'])
def test_weights_with_a_strange_header(model: Path, header: bytes) -> None:
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(AlignError) as error:
        base.check_folder("m", model)
    assert error.value.what == "the model.safetensors of the model 'm' is not a safetensors file"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"{", "broken JSON, at line 1 column 2"), (b"[]", "not a JSON object"), (b"\xff", "not UTF-8")],
)
def test_a_broken_json_file(model: Path, file: str, content: bytes, fault: str) -> None:
    (model / file).write_bytes(content)
    with pytest.raises(AlignError) as error:
        base.check_folder("m", model)
    assert error.value.what == f"the {file} of the model 'm' is {fault}"


def test_the_identity_is_that_of_the_content(model: Path, tmp_path: Path) -> None:
    first = base.resolve(str(model), None, root=tmp_path).identity()
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "README.md").write_text("it does not count")
    assert base.resolve(str(copy), None, root=tmp_path).identity() == first
    (copy / "model.safetensors").write_bytes(tensors(17))
    assert base.resolve(str(copy), None, root=tmp_path).identity() != first
    for file in ("tokenizer.json", "chat_template.jinja"):
        before = base.resolve(str(copy), None, root=tmp_path).identity()
        (copy / file).write_text("{}")
        assert base.resolve(str(copy), None, root=tmp_path).identity() != before


def test_files_are_hashed_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, cache = base.resolve(str(model), None, root=tmp_path), tmp_path / "identity.json"
    first = found.identity(cache)
    with monkeypatch.context() as patch:
        patch.setattr("align.run_folder.files.file_sha256", lambda path: pytest.fail(f"{path} is hashed again"))
        assert found.identity(cache) == first
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    assert found.identity(cache) != first
