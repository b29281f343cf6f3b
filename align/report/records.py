"""Reads a run folder into typed, frozen records. Never writes; imports neither torch nor matplotlib nor jinja2."""

import json
import re
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from align.errors import AlignError, Place
from align.report.schema import (
    FORMAT,
    Broken,
    Comparison,
    Failure,
    Forgetting,
    Quantization,
    Report,
    Run,
    Sample,
    Spectrum,
    StageEntry,
    StageRecord,
    Step,
)
from align.rl import rollouts
from align.run_folder.paths import RunDir, StageDir
from align.run_folder.records import Decision, Outcome

__all__ = ["Report", "load"]

LOG_TAIL_BYTES: Final = 16_384
LOG_TAIL_LINES: Final = 20

R = TypeVar("R", bound=BaseModel)


def load(run_dir: str | Path) -> Report:
    """Read the run in `run_dir`. Raises AlignError where it is no run folder, or where a file of it is damaged."""
    folder = RunDir(Path(run_dir))
    if not folder.record.is_file():
        raise _no_run(folder.root)
    run = _record(folder.record, Run)
    forgetting = _optional(folder.forgetting, Forgetting)
    comparison = _optional(folder.comparison, Comparison)
    quantization = _optional(folder.quantization, Quantization)
    formats = ((folder.record, run), (folder.forgetting, forgetting), (folder.comparison, comparison))
    for path, found in formats:
        if found is not None and found.format > FORMAT:
            what = f"it has format {found.format} and this align reads format {FORMAT}"
            raise AlignError(what, "update align", place=Place(str(path)))
    ids = [*run.order, *(name for name in run.stages if name not in run.order)]
    stages = tuple(_stage(folder.stage(name), name, run.stages[name]) for name in ids if name in run.stages)
    recipe = _text(folder.recipe)
    measured = {"forgetting": forgetting, "comparison": comparison, "quantization": quantization}
    return Report(run=run, recipe=recipe, stages=stages, **measured)


def _no_run(folder: Path) -> AlignError:
    remedy = "give the folder that `align run` wrote, such as runs/NAME"
    if not folder.exists():
        return AlignError(f"there is no folder {folder}", remedy)
    runs = sorted(found.parent.as_posix() for found in folder.glob("*/run.json"))
    if runs:
        remedy = f"give one of {', '.join(runs[:5])}"
    return AlignError(f"{folder} is no run folder: it has no run.json", remedy)


def _stage(folder: StageDir, name: str, entry: StageEntry) -> StageRecord:
    ended = entry.status in ("failed", "interrupted", "stopped")
    return StageRecord(
        id=name,
        entry=entry,
        outcome=_optional(folder.outcome, Outcome),
        decision=_optional(folder.decision, Decision),
        steps=_steps(folder.metrics),
        broken=_rows(folder.measurements / "broken.jsonl", Broken),
        samples=_rows(folder.measurements / "samples.jsonl", Sample),
        log_tail=_tail(folder.log) if ended else (),
        failure=_optional(folder.error, Failure) if ended else None,
        spectrum=_optional(folder.spectrum, Spectrum),
        rollouts=tuple(rollouts.read(folder.rollouts)),
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _optional(path: Path, kind: type[R]) -> R | None:
    return _record(path, kind) if path.is_file() else None


def _record(path: Path, kind: type[R]) -> R:
    remedy = "run `align run` again, which writes it anew"
    try:
        value: Any = json.loads(_text(path))
    except json.JSONDecodeError as error:
        place = Place(str(path), error.lineno, error.colno)
        raise AlignError(f"the file is damaged: {error.msg}", remedy, place=place) from error
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise AlignError(f"{where}: {first['msg']}", remedy, place=Place(str(path))) from error


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSONL file. A line torn by a crash, or being written just now, is no row yet."""
    rows = []
    for line in _text(path).split("\n"):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            rows.append(value)
    return rows


def _rows(path: Path, kind: type[R]) -> tuple[R, ...]:
    try:
        return tuple(kind.model_validate(row) for row in _lines(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"a row has a wrong {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise AlignError(what, "run `align run` again, which writes it anew", place=Place(str(path))) from error


def _steps(path: Path) -> tuple[Step, ...]:
    steps = []
    for row in _lines(path):
        values = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        if "step" in values:
            steps.append(Step(step=values["step"], values=values))
    return tuple(steps)


def _tail(path: Path) -> tuple[str, ...]:
    """The last lines of a log, without colour codes and without the overwritten states of progress bars."""
    if not path.is_file():
        return ()
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\n")]
    return tuple([line for line in lines if line.strip()][-LOG_TAIL_LINES:])
