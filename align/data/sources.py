"""Where rows come from: a file, a folder, a pattern, the lab, or a data set of the Hugging Face Hub."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from align import user_paths
from align.data import layout
from align.data.fields import FIELDS
from align.data.files import READERS, SUPPORTED, ending, read_file
from align.data.rows import DataFile, Found, RecordPlace, Row
from align.errors import AlignError

__all__ = ["DataSource", "Row", "identity", "read", "scan"]

LAB: Final = "lab/"
MOST: Final = 1_000_000  # files below a folder that is given as data: more are a home or a disk, by mistake

Format = Literal[
    "auto", "messages", "prompt_completion", "alpaca", "sharegpt", "text", "preference", "unpaired", "prompt"
]


class DataSource(BaseModel):
    """Rows to train on. In a recipe, a plain string is short for `{source: string}`."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[
        str, Field(min_length=1, description="lab/NAME, a file, a folder, a pattern such as data/*.jsonl, or org/name")
    ]
    split: Annotated[
        str, Field(description="The split of a Hub dataset, or of a folder whose files are named after splits")
    ] = "train"
    subset: Annotated[str | None, Field(description="The subset (configuration) of a Hub dataset")] = None
    revision: Annotated[str | None, Field(description="The branch, tag or commit of a Hub dataset")] = None
    format: Annotated[Format, Field(description="The format of the rows; auto: inferred from their fields")] = "auto"
    columns: Annotated[dict[str, str], Field(description="Renames: {prompt: question} reads 'question' as prompt")] = {}
    limit: Annotated[int | None, Field(ge=1, description="Take only this many rows from the start")] = None
    weight: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="The share of this source among several, by weight")
    ] = None
    on_bad_row: Annotated[
        Literal["stop", "skip"], Field(description="What a row that cannot be read does: stop the run, or be left out")
    ] = "stop"

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, keys: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Runs from before these keys were there keep their fingerprints."""
        later = {"weight": None, "on_bad_row": "stop"}
        return {name: value for name, value in keys(self).items() if later.get(name, ...) != value}

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, columns: dict[str, str]) -> dict[str, str]:
        for field in columns:
            if field not in FIELDS:
                near = get_close_matches(field, FIELDS, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(sorted(FIELDS))}"
                raise ValueError(f"'{field}' is not a field of any known format; {hint}")
        return columns


def read(source: DataSource, *, root: Path) -> Iterator[Row]:
    """The rows of `source` in order; raises AlignError at the first fault.

    Args:
        root: the recipe's folder; a relative path is looked for in the current folder first, then here.
    """
    for found in scan(source, root=root):
        if isinstance(found, AlignError):
            raise found
        yield found


def scan(source: DataSource, *, root: Path) -> Iterator[Found]:
    """As `read`, but a fault is yielded in the place of the row it spoils, and reading goes on where it can."""
    for found in islice(_all(source, root), source.limit):
        yield _renamed(found, source.columns) if isinstance(found, Row) else found


def identity(source: DataSource, *, root: Path) -> list[Path]:
    """The local files that `source` reads; none for the lab, which is made by a program."""
    return [] if _is_lab(source) else [file.path for file in _files(source, root)]


def _all(source: DataSource, root: Path) -> Iterator[Found]:
    try:
        if _is_lab(source):
            yield from _lab_rows(source.source)
            return
        for file in _files(source, root):
            yield from read_file(file)
    except AlignError as error:
        yield error


def _renamed(row: Row, columns: dict[str, str]) -> Found:
    for column in columns.values():
        if column not in row.value:
            near = get_close_matches(column, row.value, n=1)
            fields = ", ".join(f"'{name}'" for name in row.value)
            what = f"`columns` names '{column}', but the row only has {fields}"
            remedy = f"did you mean '{near[0]}'?" if near else "use one of these under `columns`"
            return AlignError(what, remedy, place=row.place)
    if not columns:
        return row
    kept = {name: value for name, value in row.value.items() if name not in columns.values()}
    return replace(row, value={**kept, **{field: row.value[column] for field, column in columns.items()}})


def _is_lab(source: DataSource) -> bool:
    return source.source.startswith(LAB) and ending(source.source) not in READERS and not glob.has_magic(source.source)


def _lab_rows(name: str) -> Iterator[Found]:
    from align.lab import data as lab

    if name not in lab.NAMES:
        near = get_close_matches(name, lab.NAMES, n=1)
        listed = ", ".join(lab.NAMES)
        raise AlignError(f"the lab has no dataset '{name}'", f"did you mean {near[0]}?" if near else f"it has {listed}")
    for number, value in enumerate(lab.rows(name), start=1):
        yield Row(dict(value), RecordPlace(name, row=number))


def _files(source: DataSource, root: Path) -> list[DataFile]:
    """The files behind a source that is not the lab's, at least one; raises AlignError."""
    text = source.source
    places = [path.absolute() for path in user_paths.candidates(text, root)]
    for path in places:
        if user_paths.there(path, Path.is_dir):
            return _folder(path, source)
        if user_paths.there(path):
            return [_local(path)]
        if glob.has_magic(text):
            if "**" in path.parts[1:2]:
                what = f"the pattern '{text}' would search the whole disk"
                raise AlignError(what, "begin it with the folder that the data are in")
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - Path.glob takes no absolute pattern
            if found := [_local(match) for match in matches if match.is_file()]:
                return found
    return _elsewhere(source, text, places)


def _elsewhere(source: DataSource, text: str, places: list[Path]) -> list[DataFile]:
    """The files of a Hub data set; raises AlignError where `text` can only have meant a path."""
    from align.data import hub

    if glob.has_magic(text):
        raise AlignError(f"no file matches '{text}'", "check the pattern; ** crosses folders, * does not")
    is_path = ending(text) in READERS or any(
        user_paths.there(path.parent, Path.is_dir) for path in places if "/" in text
    )
    if hub.is_id(text) and not is_path:
        return hub.files(text, layout.Wanted(text, source.split, source.subset), source.revision)
    for path in places:
        names = [entry.name for entry in path.parent.iterdir()] if user_paths.there(path.parent, Path.is_dir) else []
        stems = {Path(name).stem: name for name in names}  # an ending that two names share does not make them alike
        if near := get_close_matches(path.stem, stems, n=1):
            meant = str(Path(text).with_name(stems[near[0]]))
            raise AlignError(f"there is no file or folder '{text}'", f"did you mean '{meant}'?")
    remedy = f"{user_paths.START}; a Hub dataset is written org/name"
    raise AlignError(f"there is no file or folder '{text}'", remedy)


def _folder(folder: Path, source: DataSource) -> list[DataFile]:
    """Every data file under a folder; where their names tell splits, those of other splits are left out."""
    label = _local(folder).label
    below = list(islice(_below(folder), MOST + 1))
    if len(below) > MOST:
        what = f"the folder {label} holds more than {MOST:,} files"
        raise AlignError(what, "give the one that the data are in, or a pattern such as data/*.jsonl")
    names = layout.data_files(path.relative_to(folder).as_posix() for path in below)
    if not names:
        what = f"the folder {label} has no file with a supported extension"
        raise AlignError(what, f"supported are {SUPPORTED}")
    # Training on the test files that lie beside the training files would go unnoticed.
    of_split = [name for name in names if layout.split_of(name) in (None, layout.canonical(source.split))]
    if not of_split and "split" in source.model_fields_set:
        layout.by_name(names, layout.Wanted(f"the folder {label}", source.split, None))
    return [_local(folder / name) for name in of_split or names]


def _below(folder: Path) -> Iterator[Path]:
    """The files below a folder, without those of hidden folders: of a cache, of version control."""
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (path for path in (Path(here) / name for name in files) if path.is_file())


def _local(path: Path) -> DataFile:
    """The file under the name that it has from the current folder, or its whole path outside of it."""
    relative = os.path.relpath(path)
    return DataFile(path, str(path) if relative.startswith("..") else relative)
