"""The base model as files: where it is, what identifies it, what its configuration says. No torch."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import user_paths
from align.errors import AlignError, Exit, shown
from align.run_folder import files as run_files

LAB = "lab"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_SMALL = (
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*"),
    *("vocab*", "merges.txt", "added_tokens.json", "*.model", "*.tiktoken", "*.py"),
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
_PICKLED = ("pytorch_model*.bin", "consolidated*.pth", "*.ckpt")
_COPY_AGAIN = "copy or download the model again"
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Base:
    """A resolved base model.

    Attributes:
        name: as the recipe names it.
        path: the folder of its files; None for a Hub model that was not looked up.
        revision: the commit of a Hub model.
        config: its config.json.
    """

    name: str
    path: Path | None
    revision: str | None
    config: dict[str, Any]

    @property
    def context(self) -> int | None:
        """The positions that the model was made for; None where its configuration sets no such limit."""
        config = self.config.get("text_config") or self.config  # mappings, as `check_folder` has seen
        scaled = (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("factor")
        found = config.get("max_position_embeddings") or config.get("n_positions")
        return found if isinstance(found, int) and not scaled else None

    def tensors(self) -> list[str]:
        """The names of the weights, from the heads of their files; none for a Hub model that was not looked up."""
        return [name for name, _ in heads(self.path) if name != "__metadata__"] if self.path else []

    def identity(self, cache: Path | None = None) -> str:
        """The Hub commit, or a hash over its files; `cache` keeps hashes by size and time of each file."""
        if self.revision:
            return f"{self.name}@{self.revision}"
        assert self.path is not None
        record = run_files.read_object(cache) if cache else {}
        known = record.get("files", {}) if record.get("folder") == str(self.path) else {}
        known = known if isinstance(known, dict) else {}
        found = {}
        for file in sorted(p for pattern in (*_WEIGHTS, *_SMALL) for p in self.path.glob(pattern)):
            stat = file.stat()
            old = known.get(file.name)
            old = old if isinstance(old, dict) and isinstance(old.get("sha256"), str) else {}
            same = old.get("bytes") == stat.st_size and old.get("mtime_ns") == stat.st_mtime_ns
            sha256 = old["sha256"] if same else run_files.file_sha256(file)
            found[file.name] = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}
        if cache and found != known:
            run_files.write_json(cache, {"folder": str(self.path), "files": found})
        return run_files.digest({name: record["sha256"] for name, record in found.items()})


def is_on_hub(name: str, root: Path) -> bool:
    """Whether a model's name can only mean the Hub: it has its form, and no folder is called so."""
    if name == LAB or name.startswith((".", "/", "~")) or name.count("/") != 1:
        return False
    return user_paths.find(name, root, Path.is_dir) is None


def resolve(
    name: str, revision: str | None, *, root: Path, offline: bool = False, weights: bool = True, code: bool = False
) -> Base:
    """Find the base model that a recipe names.

    Args:
        name: `lab`, a folder (relative to the current one, or to `root`), or a Hub id.
        offline: do not look at the Hub; a Hub id then has no path.
        weights: fetch the weights of a Hub id too.
        code: fetch the Python code of a Hub id too.

    Raises:
        AlignError: it is no model, or the Hub does not give it.
    """
    if name == LAB:
        from align import lab

        return Base(name, lab.MODEL_DIR, None, check_folder(name, lab.MODEL_DIR))
    if is_on_hub(name, root):
        return Base(name, None, revision, {}) if offline else _hub(name, revision, weights, code)
    folder = user_paths.find(name, root, Path.is_dir)
    if folder is not None:
        return Base(name, folder.resolve(), None, check_folder(name, folder))
    what, remedy = f"there is no model folder '{name}'", "give a folder with config.json, a Hub id (owner/name), or lab"
    raise AlignError(what, remedy)


def check_folder(name: str, folder: Path, *, weights: bool = True) -> dict[str, Any]:
    """Check that a folder holds a whole model with a tokenizer; returns its config.json.

    Raises:
        AlignError: something is missing, broken, cut short, or in a format that runs code when it is read.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise AlignError(f"'{name}' is an adapter, not a base model", _base_of(folder))
        what = f"'{name}' has no config.json, so it is not a model"
        raise AlignError(what, "give a folder that save_pretrained of transformers wrote")
    config = _json(name, folder / "config.json")
    _check_shape(name, config)
    if weights:
        _check_weights(name, folder)
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        what = f"the model '{name}' has no tokenizer"
        raise AlignError(what, "save the tokenizer into the same folder (tokenizer.save_pretrained)")
    for file in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "added_tokens.json"):
        if (folder / file).is_file():
            _json(name, folder / file)
    template = folder / "chat_template.jinja"
    if template.is_file():
        _read(name, template)
    return config


def _check_shape(name: str, config: dict[str, Any]) -> None:
    """Raises AlignError where a key of a config.json that is read here holds something else than a mapping."""
    text = config.get("text_config")
    for one in (config, text if isinstance(text, dict) else {}):
        for key in ("text_config", "rope_parameters", "rope_scaling", "quantization_config"):
            if one.get(key) is not None and not isinstance(one[key], dict):
                what = f"the config.json of the model '{name}' has a {key} that is not a mapping, but {shown(one[key])}"
                raise AlignError(what, _COPY_AGAIN)


def _base_of(adapter: Path) -> str:
    """The remedy for an adapter: the base that it says it was trained on."""
    found = run_files.read_json(adapter / "adapter_config.json")
    base = found.get("base_model_name_or_path") if isinstance(found, dict) else None
    return "give the base model that it was trained on" + (f", '{base}'" if base else "")


def _read(name: str, path: Path) -> str:
    try:
        with run_files.named(path):
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise AlignError(f"the {path.name} of the model '{name}' is not UTF-8", _COPY_AGAIN) from None


def _json(name: str, path: Path) -> dict[str, Any]:
    what = f"the {path.name} of the model '{name}' is"
    text = _read(name, path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        what = f"{what} broken JSON, at line {error.lineno} column {error.colno}"
        raise AlignError(what, _COPY_AGAIN) from None
    except run_files.NO_JSON:
        raise AlignError(f"{what} not valid JSON: nested too deep, or with too long a number", _COPY_AGAIN) from None
    if not isinstance(content, dict):
        raise AlignError(f"{what} not a JSON object", _COPY_AGAIN)
    return content


def _check_weights(name: str, folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    gone = next((file for file in files if not file.is_file()), None)
    if gone is not None:
        what = f"the {gone.name} of the model '{name}' is {'a folder' if gone.is_dir() else 'a link to nothing'}"
        raise AlignError(what, _COPY_AGAIN)
    if not files:
        what = f"the model '{name}' holds no safetensors weights"
        if any(path for pattern in _PICKLED for path in folder.glob(pattern)):
            remedy = "convert them: from_pretrained, then save_pretrained of transformers"
            raise AlignError(f"{what}, only pickled ones, which run code when they are read", remedy)
        raise AlignError(what, "give a folder with model.safetensors")
    for index in folder.glob("*.safetensors.index.json"):
        listed = _json(name, index).get("weight_map")
        shards = {str(shard) for shard in listed.values()} if isinstance(listed, dict) else set[str]()
        foreign = sorted(shard for shard in shards if not shard.endswith(".safetensors") or "/" in shard)
        if foreign or not shards:
            what = f"the {index.name} of the model '{name}' names {foreign[0] if foreign else 'no weight files'}"
            raise AlignError(f"{what}; weights are read from safetensors files beside it alone", _COPY_AGAIN)
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            what = f"the model '{name}' lacks {len(missing)} of its {len(shards)} weight files, such as {missing[0]}"
            raise AlignError(what, _COPY_AGAIN)
    for file in files:
        _check_whole(name, file)


def quantization(config: dict[str, Any]) -> dict[str, Any] | None:
    """How the weights are saved quantised, by the `quantization_config` of a config.json; None for floats."""
    text = config.get("text_config")
    found = config.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    return found if isinstance(found, dict) and found else None


def held_alike(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    """Whether a base that is quantised in these two ways has the same weights, whatever it is computed in."""
    if one is None or other is None:
        return one is other
    apart = {"bnb_4bit_compute_dtype"}
    return {k: v for k, v in one.items() if k not in apart} == {k: v for k, v in other.items() if k not in apart}


def heads(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What safetensors files say of their tensors, by name: each begins with the length of that text."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            yield from json.loads(stream.read(int.from_bytes(stream.read(8), "little"))).items()


def _check_whole(name: str, file: Path) -> None:
    """A safetensors file begins with the length of its header, which says where each tensor ends."""
    size = file.stat().st_size
    with run_files.named(file), file.open("rb") as stream:
        start = stream.read(len(_LFS))
        stream.seek(8)
        length = int.from_bytes(start[:8], "little")
        header = stream.read(length) if 8 + length <= size else b""
    if start == _LFS:
        what = f"the {file.name} of the model '{name}' is a Git LFS pointer, not weights"
        raise AlignError(what, "fetch the weights with `git lfs pull`")
    try:
        tensors = json.loads(header)
        needed = max((t["data_offsets"][1] for key, t in tensors.items() if key != "__metadata__"), default=0)
    except (*run_files.NO_JSON, AttributeError, KeyError, TypeError):
        raise AlignError(f"the {file.name} of the model '{name}' is not a safetensors file", _COPY_AGAIN) from None
    if size < 8 + length + needed:
        what = f"the {file.name} of the model '{name}' is cut short: {size:,} of {8 + length + needed:,} bytes"
        raise AlignError(what, _COPY_AGAIN)


def _hub(name: str, revision: str | None, weights: bool, code: bool) -> Base:
    """Look a Hub model up, downloading its files into the Hugging Face cache (HF_HOME, HF_TOKEN are respected)."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub

    patterns = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", *(["*.safetensors"] if weights else [])]
    patterns += ["*.py"] if code else []
    with _told(name, revision):
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    return Base(name, folder, folder.name, check_folder(name, folder, weights=weights))


@contextmanager
def _told(name: str, revision: str | None) -> Iterator[None]:
    """What the Hub's client raises, as one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        remedy = f"accept its terms on https://huggingface.co/{name}, then `hf auth login` or set HF_TOKEN"
        raise AlignError(f"the model '{name}' is gated", remedy) from None
    except errors.RevisionNotFoundError:
        remedy = f"see https://huggingface.co/{name}/tree/main"
        raise AlignError(f"the model '{name}' has no revision '{revision}'", remedy) from None
    except errors.RepositoryNotFoundError:
        what = f"there is no folder '{name}', and no model of this name on the Hub that you can access"
        raise AlignError(what, "check the spelling; for a private one `hf auth login` or set HF_TOKEN") from None
    except errors.HFValidationError:
        what = f"there is no folder '{name}', and a model on the Hub cannot have this name"
        raise AlignError(what, "check the spelling") from None
    except OSError as error:  # of the network, the Hub, or the disk
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            what = f"the model '{name}' cannot be saved into the Hugging Face cache: {error.strerror}"
            raise AlignError(what, "free some disk, or set HF_HOME to another one", exit=Exit.MACHINE) from None
        what = f"the model '{name}' is not in the local cache, and the Hub cannot be reached"
        raise AlignError(what, f"connect, or fetch it where there is a network: hf download {name}") from None


def replaced_tokens(keys: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a recipe's `model` names in place of the tokenizer's own."""
    return {name: str(keys[name]) for name in ("eos_token", "pad_token") if keys.get(name)}
