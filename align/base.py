"""The base model as files: where it is, what identifies it, what its configuration says. No torch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import rundir
from align.errors import AlignError, Exit

LAB = "lab"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_SMALL = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*",
          "vocab*", "merges.txt", "added_tokens.json", "*.model", "*.tiktoken")


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

    def identity(self, cache: Path | None = None) -> str:
        """The Hub commit, or a hash over its files; `cache` keeps hashes by size and time of each file."""
        if self.revision:
            return f"{self.name}@{self.revision}"
        assert self.path is not None
        known = rundir.read_json(cache, {}) if cache else {}
        found = {}
        for file in sorted(p for pattern in (*_WEIGHTS, *_SMALL) for p in self.path.glob(pattern)):
            stat = file.stat()
            old = known.get(file.name, {})
            same = old.get("bytes") == stat.st_size and old.get("mtime_ns") == stat.st_mtime_ns
            sha256 = old["sha256"] if same else rundir.file_sha256(file)
            found[file.name] = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}
        if cache and found != known:
            rundir.write_json(cache, found)
        return rundir.digest({name: record["sha256"] for name, record in found.items()})


def resolve(name: str, revision: str | None, *, root: Path, offline: bool = False) -> Base:
    """Find the base model that a recipe names.

    Args:
        name: `lab`, a folder (relative to the current one, or to `root`), or a Hub id.
        offline: do not look at the Hub; a Hub id then has no path.

    Raises:
        AlignError: it is no model, or the Hub does not give it.
    """
    if name == LAB:
        from align import lab

        return _folder(name, lab.MODEL_DIR)
    for folder in (Path(name).expanduser(), root / name):
        if folder.is_dir():
            return _folder(name, folder.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise AlignError(f"there is no model folder '{name}'", "give a folder with config.json, a Hugging Face id "
                         "(owner/name), or `lab`")
    if offline:
        return Base(name, None, revision, {})
    return _hub(name, revision)


def _folder(name: str, folder: Path) -> Base:
    config = folder / "config.json"
    if not config.is_file():
        if (folder / "adapter_config.json").is_file():
            raise AlignError(f"'{name}' is an adapter, not a base model", "give the base model that it was trained on")
        raise AlignError(f"the folder '{name}' holds no config.json, so it is no model",
                         "give a folder saved by transformers' save_pretrained")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AlignError(f"the config.json of '{name}' is no JSON ({error})", "save the model again") from None
    if not any(folder.glob(pattern) for pattern in ("*.safetensors",)):
        pickled = next(folder.glob("pytorch_model*.bin"), None)
        remedy = "convert it: load it with transformers and save_pretrained (safetensors)" if pickled else \
            "give a folder with model.safetensors"
        raise AlignError(f"the model folder '{name}' holds no safetensors weights", remedy)
    if not any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")):
        raise AlignError(f"the model folder '{name}' holds no tokenizer", "save the tokenizer beside the model")
    return Base(name, folder, None, content)


def _hub(name: str, revision: str | None) -> Base:
    """Look a Hub model up, downloading its files into the Hugging Face cache (HF_HOME, HF_TOKEN are respected)."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise AlignError(f"the model '{name}' is gated", f"accept its terms on https://huggingface.co/{name}, then "
                         "`hf auth login` or set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise AlignError(f"the model '{name}' has no revision '{revision}'", "give a commit, tag or branch") from None
    except RepositoryNotFoundError:
        raise AlignError(f"there is no model '{name}' on the Hub, or it is private", "check the name; for a private "
                         "one `hf auth login` or set HF_TOKEN") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError):
        raise AlignError(f"the model '{name}' is not in the local cache and the Hub cannot be reached",
                         "connect, or give the folder of a copy", exit=Exit.BAD_INPUT) from None
    return Base(name, folder, folder.name, _folder(name, folder).config)
