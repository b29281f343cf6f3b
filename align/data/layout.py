"""Which files of a data set belong to a split and a subset: the layouts that the Hub's data sets use.

See https://huggingface.co/docs/hub/datasets-data-files-configuration. A data set says so itself in the YAML head of
its README (`configs:`), or by the names of its files and folders. The Hub's own conversion of every data set to
Parquet, on the branch refs/convert/parquet, lies in folders `subset/split/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any, Final

from align.data.files import READERS, ending
from align.errors import AlignError

_KEYWORDS: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD: Final = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<total>\d{5})\b")
_NOT_A_WORD: Final = re.compile(r"[-._ 0-9]+")
_NO_DATA: Final = ("readme", "license", "requirements.txt", "config.json", "dataset_info", "dataset_dict", "state.json")
_BEST_FIRST: Final = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Wanted:
    """What a recipe asks of a data set; `name` is the data set's, for messages."""

    name: str
    split: str
    subset: str | None


def data_files(names: Iterable[str]) -> list[str]:
    """Those of `names` (paths with /) that hold rows, sorted: no hidden files, no README, no metadata."""
    return sorted(
        name
        for name in names
        if ending(name) in READERS
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
        and not PurePosixPath(name).name.lower().startswith(_NO_DATA)
    )


def canonical(split: str) -> str:
    """The name that a split has whatever its spelling: validation for val, valid and dev."""
    return _KEYWORDS.get(split, split)


def split_of(name: str) -> str | None:
    """The split that a path is named for, its folders before its own name; None where it is named for none."""
    path = PurePosixPath(name)
    if shard := _SHARD.match(path.name):
        return canonical(shard["split"])
    for part in (*path.parts[:-1], path.name):
        for word in _NOT_A_WORD.split(part.lower()):
            if word in _KEYWORDS:
                return _KEYWORDS[word]
    return None


def by_name(names: Sequence[str], wanted: Wanted) -> list[str]:
    """The files of the wanted subset and split, by their names; [] where the names do not tell the subset."""
    found = data_files(names)
    if wanted.subset is not None:
        found = [name for name in found if wanted.subset in PurePosixPath(name).parts[:-1]]
    best = next((kind for kind in _BEST_FIRST if any(ending(name) == kind for name in found)), None)
    found = [name for name in found if ending(name) == best]
    splits = {name: split_of(name) for name in found}
    if not any(splits.values()):
        return found if canonical(wanted.split) == "train" or not found else _no_split(wanted, {"train"})
    chosen = [name for name in found if splits[name] == canonical(wanted.split)]
    return chosen or _no_split(wanted, {split for split in splits.values() if split})


def converted(names: Sequence[str], wanted: Wanted) -> list[str]:
    """The files on the branch refs/convert/parquet; raises AlignError where it lacks the subset or split."""
    paths = [path for path in map(PurePosixPath, data_files(names)) if len(path.parts) == 3]
    subset = _subset(sorted({path.parts[0] for path in paths}), wanted)
    splits = {path.parts[1].removeprefix("partial-") for path in paths if path.parts[0] == subset}
    chosen = [str(p) for p in paths if p.parts[0] == subset and p.parts[1].removeprefix("partial-") == wanted.split]
    return chosen or _no_split(wanted, splits)


def by_readme(names: Sequence[str], configs: Any, wanted: Wanted) -> list[str]:
    """The files that the README's `configs:` give the wanted subset and split; [] where it names no files."""
    known = [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []
    known = [entry for entry in known if entry.get("data_files")]
    if not known:
        return []
    default = next((str(entry.get("config_name")) for entry in known if entry.get("default")), None)
    subset = _subset([str(entry.get("config_name", "default")) for entry in known], wanted, default)
    entry = next(entry for entry in known if str(entry.get("config_name", "default")) == subset)
    patterns = _patterns(entry["data_files"])
    if wanted.split not in patterns:
        return _no_split(wanted, set(patterns))
    folder = str(entry.get("data_dir") or "").strip("/")
    matchers = [glob_pattern(f"{folder}/{each}" if folder else each) for each in patterns[wanted.split]]
    return [name for name in data_files(names) if any(matcher.fullmatch(name) for matcher in matchers)]


def _patterns(data: Any) -> dict[str, list[str]]:
    """Split -> file patterns, from any of the spellings that `data_files:` may have."""
    if isinstance(data, str):
        return {"train": [data]}
    if isinstance(data, dict):
        return {str(split): _listed(paths) for split, paths in data.items()}
    patterns: dict[str, list[str]] = {}
    for entry in data if isinstance(data, list) else []:
        split, paths = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        patterns.setdefault(str(split), []).extend(_listed(paths))
    return patterns


def _listed(paths: Any) -> list[str]:
    return [str(path).removeprefix("./") for path in (paths if isinstance(paths, list) else [paths])]


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """A path pattern as a regular expression: ** crosses folders, * and ? do not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(special.get(part) or (part if part.startswith("[") else re.escape(part)) for part in parts)
    )


def missing_shards(names: Sequence[str]) -> tuple[int, int] | None:
    """How many of how many shards are among `names`, where their names count them and some lack; otherwise None."""
    totals: dict[tuple[str, int], int] = {}
    for name in names:
        if shard := _SHARD.match(name):
            key = (shard["split"], int(shard["total"]))
            totals[key] = totals.get(key, 0) + 1
    here, all_of_them = sum(totals.values()), sum(total for _, total in totals)
    return (here, all_of_them) if here < all_of_them else None


def _subset(known: list[str], wanted: Wanted, default: str | None = None) -> str:
    if wanted.subset in known:
        return str(wanted.subset)
    listed = ", ".join(f"'{name}'" for name in known)
    if wanted.subset is not None:
        near = get_close_matches(wanted.subset, known, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else "take one of these"
        raise AlignError(f"{wanted.name} has no subset '{wanted.subset}'; it has {listed}", remedy)
    if default is None and "default" in known:
        default = "default"
    if default is None and len(known) == 1:
        default = known[0]
    if default is None:
        raise AlignError(f"{wanted.name} has {len(known)} subsets: {listed}", "choose one with the key subset")
    return default


def _no_split(wanted: Wanted, known: set[str]) -> list[str]:
    listed = ", ".join(f"'{name}'" for name in sorted(known))
    near = get_close_matches(wanted.split, sorted(known), n=1)
    remedy = f"did you mean '{near[0]}'?" if near else "choose one of these with the key split"
    raise AlignError(f"{wanted.name} has no split '{wanted.split}'; it has {listed}", remedy)
