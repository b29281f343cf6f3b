"""Reads files of a run into records, and says which file is damaged where one is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from align.errors import AlignError, Place
from align.run_folder import files
from align.run_folder.records import Outcome
from align.run_folder.stage_dir import StageDir

R = TypeVar("R", bound=BaseModel)

REMEDY = "run `align run` again, which rewrites it"
OTHER = "give another --run-dir, or remove the file: the run then starts over"


def text(path: Path) -> str:
    """The content of a file, and nothing where there is none."""
    with files.named(path):
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read(path: Path, kind: type[R]) -> R:
    """The record in a JSON file.

    Raises:
        AlignError: it is no JSON, or holds another thing.
    """
    try:
        value: Any = json.loads(text(path))
    except json.JSONDecodeError as error:
        place = Place(str(path), error.lineno, error.colno)
        raise AlignError(f"the file is damaged: {error.msg}", REMEDY, place=place) from error
    except files.NO_JSON as error:
        raise AlignError("the file is damaged", REMEDY, place=Place(str(path))) from error
    return _validated(value, kind, path, REMEDY)


def optional(path: Path, kind: type[R]) -> R | None:
    """The same; None where there is no file."""
    return read(path, kind) if path.is_file() else None


def whole(path: Path, kind: type[R]) -> R | None:
    """The same; None where the file is missing, torn, altered or of another shape, as if it had never been written."""
    value = files.unsealed(files.read_json(path))
    try:
        return None if value is None else kind.model_validate(value)
    except ValidationError:
        return None


def sound(path: Path, kind: type[R], remedy: str) -> R | None:
    """The same; but what holds another thing is refused, since something else hangs on it.

    Raises:
        AlignError: it holds another thing.
    """
    value = files.read_json(path)
    return None if value is None else _validated(value, kind, path, remedy)


def rows(path: Path, kind: type[R]) -> tuple[R, ...]:
    """The whole rows of a JSONL file as records.

    Raises:
        AlignError: one of them holds another thing.
    """
    try:
        return tuple(kind.model_validate(row) for row in lines(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"a row has a wrong {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise AlignError(what, REMEDY, place=Place(str(path))) from error


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSONL file. A line torn by a crash, or being written just now, is no row yet."""
    found = []
    for line in text(path).split("\n"):
        try:
            value = json.loads(line)
        except files.NO_JSON:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def outcome(stage: StageDir) -> Outcome | None:
    """What a stage did; None where it is not done, or its record is torn."""
    return outcome_in(stage.outcome)


def outcome_in(path: Path) -> Outcome | None:
    """The outcome in a file; None where there is none, or where it is torn."""
    return whole(path, Outcome)


def goes_on(stage: StageDir) -> str:
    """Which policy goes on from a stage: `as_trained`, unless its decision says otherwise; of an interpolated one with
    its shape and its share."""
    decision = files.read_object(stage.decision)
    share = decision.get("share")
    which = str(decision.get("policy", "as_trained"))
    return which if not isinstance(share, int | float) else f"{which} {decision.get('shape')} {share:g}"


def attempt(stage: StageDir) -> int:
    """Which attempt at a stage was decided to go on: the first, unless its decision says otherwise."""
    found = files.read_object(stage.decision).get("attempt", 1)
    return found if isinstance(found, int) and found > 0 else 1


def _validated(value: Any, kind: type[R], path: Path, remedy: str) -> R:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        said = "it has to be a mapping" if first["type"] == "model_type" else first["msg"]
        raise AlignError(f"{where}: {said}", remedy, place=Place(str(path))) from error
