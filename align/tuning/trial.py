"""One trial: a run of its own with some values of the stage changed, which ends where it is not worth the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rich.console import Console

from align.errors import AlignError, Exit
from align.forgetting import measurements
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import files, reading
from align.run_folder.paths import RunDir
from align.run_folder.records import Record
from align.run_folder.run_record import RunRecord
from align.run_folder.stage_dir import StageDir
from align.runner import loop
from align.runner.options import Abandoned, Options, Trial
from align.runner.progress import Watcher
from align.tuning.figures import Figures, Measure

State = Literal["running", "done", "ended early", "failed"]
WEIGHTS: Final = (".safetensors",)


class TrialRecord(Record):
    """trial.json.

    Attributes:
        places: where the values lie between the ends of their ranges, 0 to 1: what the sampler chose.
        same_as: the number of an earlier trial with the same values, which is not made again.
        seconds: of all that was done for it, in wall time.
        fault: why it failed.
    """

    number: int
    values: Mapping[str, float]
    places: Mapping[str, float]
    state: State = "running"
    same_as: int | None = None
    seconds: float = 0.0
    fault: str = ""


@dataclass(frozen=True)
class TrialDir:
    """The paths of a trial."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "trial.json"

    @property
    def log(self) -> Path:
        """What a run would have shown in the terminal."""
        return self.root / "terminal.txt"

    @property
    def run(self) -> RunDir:
        return RunDir(self.root / "run")


class Judging(Watcher):
    """Shows how far a trial is, writes the rest of what a run says into its log, and ends it where it is beaten.

    Args:
        label: what stands before the bar.
        stage: that is tried.
        beaten: is given what has been measured of the trial, and says whether it is not worth the rest.
    """

    def __init__(
        self,
        console: Console,
        log: Path,
        label: str,
        stage: StageDir,
        measure: Measure,
        beaten: Callable[[list[Figures]], bool],
    ) -> None:
        super().__init__(console)
        self.log, self.label, self.tried, self.measure, self.beaten = log, label, stage, measure, beaten
        self.seen = 0

    def say(self, text: str, word: str = "") -> None:
        if word in ("warning", "alarm") or text.startswith("stopping"):  # the answer to Ctrl-C
            super().say(f"{self.label}: {text}", word)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{word}: {text}\n" if word else f"{text}\n")

    def begin(self, stage: str, metrics: Path, progress: Path) -> None:
        super().begin(stage, metrics, progress)
        if self.bars is not None and self.task is not None:
            self.bars.update(self.task, description=f"{self.label}, {stage}")

    def refresh(self) -> None:
        super().refresh()
        size = sum(path.stat().st_size for path in (self.tried.curve, self.tried.metrics) if path.is_file())
        if size == self.seen or self.tried.outcome.is_file():
            return
        self.seen = size
        if self.beaten(self.measure.read(self.tried)):
            raise Abandoned


def execute(loaded: Loaded, folder: TrialDir, plan: StagePlan, every: int, watcher: Judging) -> State:
    """Run the stage, or go on with it, and what it comes from where that is not there yet.

    Raises:
        AlignError: the stage fails, or one before it, or the gate stops the run before it.
        KeyboardInterrupt: after a checkpoint was saved.
    """
    try:
        with watcher:
            code = loop.Run(loaded, Options(trial=Trial(plan.id, every)), folder.run, watcher).execute()
    except Abandoned:
        return "ended early"
    if code == Exit.GATE:
        what = f"the gate stopped the run before '{plan.id}'; {folder.run.root / 'report.md'} says why"
        raise AlignError(what, f"change the recipe so that what comes before '{plan.id}' passes", exit=Exit.GATE)
    return "done"


def take_over(source: RunDir, target: RunDir, stage: str) -> None:
    """Have a new trial begin with what another one did before the stage: the commit of a model of the Hub, the checked
    rows, the base's measurements, earlier stages."""
    record = reading.sound(source.record, RunRecord, reading.OTHER)
    if record is None or target.record.is_file():
        return
    earlier = [id for id in record.stages if id != stage and source.stage(id).outcome.is_file()]
    whole = measurements.is_whole(source.base_measurements)
    base = [source.root / "base"] if whole else []
    for part in (source.data, *base, *(source.stage(id).root for id in earlier)):
        for path in sorted(part.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.suffix != ".txt":  # logs are written on
                files.link(path, target.root / path.relative_to(source.root))
    kept = {id: record.stages[id] for id in earlier}
    files.write_json(target.record, record.but(stages=kept).written())


def strip(folder: TrialDir, stage: str) -> None:
    """Give back the room that a trial no longer needs: the weights that it trained, and its checkpoints."""
    here = folder.run.stage(stage)
    for part in (here.checkpoints, here.tokens):
        files.remove(part)
    for path in here.root.rglob("*"):
        if path.suffix in WEIGHTS:
            files.remove(path)
