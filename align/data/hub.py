"""Data sets of the Hugging Face Hub, as files. No code of a data set is ever run and no pickle is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from align.data import layout
from align.data.layout import Wanted
from align.data.rows import DataFile
from align.errors import AlignError

_CONVERTED: Final = "refs/convert/parquet"


class _Unreachable(Exception):
    """The Hub does not answer, or we were told not to ask."""


@dataclass(frozen=True)
class _Tree:
    """The files of one revision of a data set; `fetch` gives the local path of one of them."""

    names: list[str]
    fetch: Callable[[str], Path]


def files(name: str, wanted: Wanted, revision: str | None) -> list[DataFile]:
    """The local files of data set `name` ("org/name"), downloaded where they are not in the cache.

    The repository's own files are preferred; the Hub's conversion to Parquet is the way out for a data set that is
    only a script. Raises AlignError where the data set, subset or split does not exist, is gated, or is neither
    reachable nor cached.
    """
    tree = _tree(name, revision or "main")
    chosen = layout.by_readme(tree.names, _readme_configs(tree), wanted) or layout.by_name(tree.names, wanted)
    if not chosen:
        tree = _tree(name, _CONVERTED)
        chosen = layout.converted(tree.names, wanted)
    if missing := layout.missing_shards(chosen):
        what = f"only {missing[0]} of the {missing[1]} files of {name} are present"
        raise AlignError(what, f"download it completely: hf download --repo-type dataset {name}")
    return [DataFile(tree.fetch(file), f"{name}/{file}") for file in chosen]


def _tree(name: str, revision: str) -> _Tree:
    try:
        return _online(name, revision)
    except _Unreachable:
        return _cached(name, revision)


def _online(name: str, revision: str) -> _Tree:
    from huggingface_hub import HfApi, hf_hub_download

    with _answers(name, revision):
        info = HfApi().dataset_info(name, revision=revision)
    commit = info.sha or revision

    def fetch(file: str) -> Path:
        try:
            with _answers(name, revision):
                return Path(hf_hub_download(name, file, repo_type="dataset", revision=commit))
        except _Unreachable:
            what = f"the connection to the Hub failed while downloading {name}/{file}"
            raise AlignError(what, "run the command again; finished downloads are kept") from None

    return _Tree([sibling.rfilename for sibling in info.siblings or []], fetch)


def _cached(name: str, revision: str) -> _Tree:
    """The files of the snapshot in the local cache, whose layout the Hub's documentation fixes."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
    ref = folder / "refs" / revision
    snapshot = folder / "snapshots" / (ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision)
    if not snapshot.is_dir():
        what = f"the dataset {name} is not in the local cache, and the Hub cannot be reached"
        raise AlignError(
            what,
            f"connect to the network, or download it elsewhere: hf download --repo-type dataset {name}",
        )
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    return _Tree(names, lambda file: snapshot / file)


@contextmanager
def _answers(name: str, revision: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one sentence, and no answer into _Unreachable."""
    from huggingface_hub import errors

    no_answer: tuple[type[Exception], ...] = (OSError, getattr(errors, "HTTPError", OSError))
    page = f"https://huggingface.co/datasets/{name}"
    try:
        yield
    except errors.GatedRepoError:
        what = f"the dataset {name} is gated"
        raise AlignError(what, f"accept the terms on {page} and run: hf auth login") from None
    except errors.RepositoryNotFoundError:
        what = f"there is no file or folder '{name}', and no dataset of this name on the Hub that you can access"
        raise AlignError(what, "check the spelling; for a private dataset, run: hf auth login") from None
    except errors.RevisionNotFoundError:
        if revision == _CONVERTED:
            what = f"the dataset {name} has no JSON, Parquet, CSV or text files, and the Hub has not converted it"
            raise AlignError(what, "convert it yourself and give the file; dataset scripts are never run") from None
        raise AlignError(f"the dataset {name} has no revision '{revision}'", f"see {page}/tree/main") from None
    except errors.HFValidationError:
        raise AlignError(f"'{name}' is not a valid name for a Hub dataset", "check the spelling") from None
    except no_answer as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise AlignError(f"the Hub refuses access to {name}", "run: hf auth login") from None
        raise _Unreachable from error


def _readme_configs(tree: _Tree) -> Any:
    """What the YAML head of the README says under `configs`; None where it says nothing."""
    if "README.md" not in tree.names:
        return None
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    head = tree.fetch("README.md").read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(head) < 3 or head[0].strip():
        return None
    try:
        metadata = YAML(typ="safe", pure=True).load(head[1])
    except YAMLError:
        return None
    return metadata.get("configs") if isinstance(metadata, dict) else None


def is_id(text: str) -> bool:
    """Whether `text` has the form "org/name"."""
    parts = text.split("/")
    return len(parts) == 2 and all(part and part[0].isalnum() for part in parts)
