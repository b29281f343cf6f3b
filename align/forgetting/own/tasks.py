"""Tasks of lm-evaluation-harness, found and checked without importing it. No torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align import user_paths
from align.errors import AlignError, Exit, did_you_mean
from align.forgetting.own.keys import ProbeTask
from align.forgetting.own.kinds import Task
from align.run_folder import files

MODULE, PACKAGE, EXTRA = "lm_eval", "lm-eval", "align-suite[eval]"
_NAME = re.compile(rb"^(?:task|group):[ \t]*['\"]?([\w.:+/-]+)['\"]?[ \t]*(?:#.*)?$", re.MULTILINE)
_TAGGED = re.compile(rb"^(?:tag|group):[ \t]*\n?((?:[ \t]*-[ \t]*[\w.-]+[ \t]*\n)+|[ \t]*[\w.-]+[ \t]*$)", re.MULTILINE)
_OF_FILES = frozenset({"json", "csv", "text", "parquet", "arrow", "pandas"})  # readers of `datasets`, not data sets


def find(name: str, keys: ProbeTask, root: Path, *, offline: bool) -> Task:
    """The task of a probe.

    Args:
        name: of the probe.
        root: the recipe's folder.
        offline: its data have to be in a cache already.

    Raises:
        AlignError: the harness is not installed, has no such task, or its data are neither here nor to be had.
    """
    version = _version()
    folder, own = user_paths.find(keys.task, root), True
    if folder is not None and (folder.is_file() or keys.task.startswith((".", "/", "~"))):
        file, task = _own(keys.task, folder)
        declared = [file] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.suffix in (".yaml", ".py"))
    elif keys.task.startswith((".", "/", "~")) or keys.task.endswith((".yaml", ".yml")):
        raise AlignError(f"there is no folder or file '{keys.task}'", user_paths.START)
    else:
        file, task, own = _shipped(keys.task), keys.task, False
        declared = [file]
    if offline or _told_offline():
        _check_cached(keys.task, file)
    sha256 = files.digest([files.file_sha256(path) for path in declared])
    group = _yaml(file).get("task") != task
    return Task(name, task, str(file.parent.absolute()), own, group, keys.limit, keys.field, sha256, version)


def _version() -> str:
    """The installed version of the harness; it has to be one that the extra `eval` allows."""
    try:
        installed = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        what = "a task of lm-evaluation-harness needs the package 'lm-eval', which is not installed"
        raise AlignError(what, f"pip install '{EXTRA}'", exit=Exit.MACHINE) from None
    if not re.match(r"0\.4\.(1[3-9]|[2-9]\d)", installed):
        what = f"lm-eval {installed} is installed, but align needs 0.4.13 or a later 0.4"
        raise AlignError(what, f"pip install '{EXTRA}'", exit=Exit.MACHINE)
    return installed


def _shipped(task: str) -> Path:
    """The file that declares a task, a group or a tag of the harness."""
    spec = importlib.util.find_spec(MODULE)
    assert spec is not None and spec.origin is not None
    known: dict[str, Path] = {}
    for path in sorted((Path(spec.origin).parent / "tasks").glob("**/*.yaml")):
        text = path.read_bytes()
        for found in _NAME.findall(text):
            known.setdefault(found.decode(), path)
        for listed in _TAGGED.findall(text):
            for found in re.findall(rb"[\w.-]*\w[\w.-]*", listed):
                known.setdefault(found.decode(), path)
    if task not in known:
        near = did_you_mean(task, known)
        remedy = near if near.startswith("did") else "list the tasks with: lm-eval ls tasks"
        raise AlignError(f"lm-evaluation-harness has no task '{task}'", remedy)
    return known[task]


def _own(given: str, path: Path) -> tuple[Path, str]:
    """The file and the name of a task of one's own."""
    found: dict[str, Path] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.yaml")):
        declared = _yaml(file)
        name = declared.get("group", declared.get("task"))
        if isinstance(name, str):
            found[name] = file
    if not found:
        what = f"'{given}' declares no task" if path.is_file() else f"the folder '{given}' has no YAML file with a task"
        raise AlignError(what, "write `task: NAME` into it, as lm-evaluation-harness wants it")
    if len(found) > 1:
        files_ = ", ".join(str(file.relative_to(path)) for file in found.values())
        raise AlignError(f"the folder '{given}' has several tasks: {', '.join(found)}", f"name one file: {files_}")
    name, file = next(iter(found.items()))
    return file, name


def _yaml(file: Path) -> dict[str, Any]:
    """What a YAML file of the harness says; `!function` and what else it has of its own is left as it is."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        read = YAML(typ="rt", pure=True).load(file)
    except YAMLError as error:
        what = f"the task file '{file}' is not valid YAML: {str(error).splitlines()[0]}"
        raise AlignError(what, "correct it there") from None
    return read if isinstance(read, dict) else {}


def _check_cached(task: str, file: Path) -> None:
    """Raises AlignError where the data of a task would have to be fetched and cannot be."""
    for data in dict.fromkeys(_data_sets(file, set())):
        if data in _OF_FILES or Path(data).exists() or any(_in_caches(data)):
            continue
        what = f"the data set '{data}' of the task '{task}' is not in the local cache, and the Hub cannot be reached"
        remedy = f"connect to the network, or download it elsewhere: hf download --repo-type dataset {data}"
        raise AlignError(what, remedy)


def _data_sets(file: Path, seen: set[Path]) -> Iterator[str]:
    """The data sets that a task file names, in itself or in the files that it includes."""
    if file in seen or not file.is_file():
        return
    seen.add(file)
    declared = _yaml(file)
    if isinstance(declared.get("dataset_path"), str):
        yield declared["dataset_path"]
    elif isinstance(included := declared.get("include"), str | list):
        for one in [included] if isinstance(included, str) else included:
            yield from _data_sets((file.parent / str(one)).resolve(), seen)


def _in_caches(data: str) -> Iterator[Path]:
    """The folders in which `datasets` and the Hub's client keep a data set."""
    from huggingface_hub import constants

    home = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    for folder in (
        home / data.replace("/", "___"),
        Path(constants.HF_HUB_CACHE) / f"datasets--{data.replace('/', '--')}",
    ):
        if folder.is_dir():
            yield folder


def _told_offline() -> bool:
    """Whether the environment says that nothing is to be fetched."""
    from huggingface_hub import constants

    told = os.environ.get("HF_DATASETS_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return told or constants.is_offline_mode()
