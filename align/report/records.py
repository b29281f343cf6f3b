"""Reads a run folder into typed, frozen records. Never writes; imports neither torch nor matplotlib nor jinja2."""

import re
from pathlib import Path
from typing import Final

from align.errors import AlignError, Place
from align.forgetting.inside import Measured
from align.forgetting.records import Answer, BrokenAnswer, MendedAnswer, QuantizationCost, Sample
from align.forgetting.table import Forgetting
from align.report.schema import Report, StageRecord, Step
from align.rl import rollouts
from align.run_folder import files, handed_on, reading
from align.run_folder.comparison import ComparisonResult
from align.run_folder.decisions import Decision
from align.run_folder.paths import RunDir
from align.run_folder.records import FORMAT, Failure, Outcome
from align.run_folder.run_record import RunRecord, StageEntry
from align.run_folder.stage_dir import StageDir
from align.spectrum.records import Spectrum
from align.written import keep

__all__ = ["Report", "load"]

LOG_TAIL_BYTES: Final = 16_384
LOG_TAIL_LINES: Final = 20


def load(run_dir: str | Path, *, live: bool = False) -> Report:
    """Read the run in `run_dir`; `live` says that it is under way.

    Raises:
        AlignError: it is not a run folder, or a file of it is damaged.
    """
    folder = RunDir(Path(run_dir))
    if not folder.record.is_file():
        raise _no_run(folder.root)
    run = reading.read(folder.record, RunRecord)
    forgetting = reading.optional(folder.forgetting, Forgetting)
    comparison = reading.optional(folder.comparison, ComparisonResult)
    quantization = reading.optional(folder.quantization, QuantizationCost)
    formats = ((folder.record, run), (folder.forgetting, forgetting), (folder.comparison, comparison))
    for path, found in formats:
        if found is not None and found.format > FORMAT:
            what = f"it has format {found.format} and this align reads format {FORMAT}"
            raise AlignError(what, "update align", place=Place(str(path)))
    ids = [*run.order, *(name for name in run.stages if name not in run.order)]
    stages = tuple(_stage(folder.stage(name), name, run.stages[name]) for name in ids if name in run.stages)
    recipe = reading.text(folder.recipe)
    measured = {"forgetting": forgetting, "comparison": comparison, "quantization": quantization}
    base = files.read_object(folder.base_measurements / "summary.json").get("seconds")
    answers = reading.rows(folder.base_answers, Answer)
    return Report(run=run, live=live, recipe=recipe, stages=stages, base_seconds=base, base_answers=answers, **measured)


def _no_run(folder: Path) -> AlignError:
    remedy = "give the folder that `align run` wrote, such as runs/NAME"
    if not folder.exists():
        return AlignError(f"there is no folder {folder}", remedy)
    runs = sorted(found.parent.as_posix() for found in folder.glob("*/run.json"))
    if runs:
        remedy = f"give one of {', '.join(runs[:5])}"
    return AlignError(f"{folder} is not a run folder: it has no run.json", remedy)


def _stage(folder: StageDir, name: str, entry: StageEntry) -> StageRecord:
    measured = handed_on.folder(folder).measurements
    ended = entry.status in ("failed", "interrupted", "stopped")
    return StageRecord(
        id=name,
        entry=entry,
        outcome=reading.optional(folder.outcome, Outcome),
        decision=reading.optional(folder.decision, Decision),
        steps=_steps(folder.metrics),
        broken=reading.rows(measured / "broken.jsonl", BrokenAnswer),
        mended=reading.rows(measured / "mended.jsonl", MendedAnswer),
        samples=reading.rows(measured / "samples.jsonl", Sample),
        answers=reading.rows(handed_on.folder(folder).answers, Answer),
        log_tail=_tail(folder.log) if ended else (),
        at=_at(folder.progress) if entry.status == "running" else "",
        failure=reading.optional(folder.error, Failure) if ended else None,
        spectrum=reading.optional(folder.spectrum, Spectrum),
        rollouts=tuple(rollouts.read(folder.rollouts)),
        inside=reading.rows(folder.curve, Measured),
        own_rows=keep.examples(folder.written),
        tried_seconds=_tried(folder),
    )


def _tried(folder: StageDir) -> float:
    """What the other attempts at a stage took, and measuring shares of its update and of theirs."""
    kept = folder.kept_attempts
    trained = [outcome for here in kept if (outcome := reading.outcome(here))]
    decided = [outcome for here in (folder, *kept) if (outcome := reading.outcome(here.decided))]
    shares = [path for here in (folder, *kept) for path in here.measured_shares]
    measured = [float(files.read_object(path / "summary.json").get("seconds", 0.0)) for path in shares]
    spent = [outcome.seconds + outcome.measure_seconds for outcome in trained]
    return sum(spent) + sum(outcome.measure_seconds for outcome in decided) + sum(measured)


def _at(path: Path) -> str:
    """The last thing that a stage told of what it is at."""
    told = [line["at"] for line in reading.lines(path) if isinstance(line.get("at"), str)]
    return told[-1] if told else ""


def _steps(path: Path) -> tuple[Step, ...]:
    steps = []
    for row in reading.lines(path):
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
