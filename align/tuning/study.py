"""The trials of a tuning, one after the other, in a folder.

What stands in the folders of the trials is all that there is to know: whoever chooses is told of them anew each time,
so that a tuning that was killed goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout
from rich.console import Console

from align.errors import AlignError, Exit
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import files, reading
from align.run_folder.records import FORMAT, Record
from align.runner import executing
from align.tuning import space, trial
from align.tuning.chooser import ETA, Chooser
from align.tuning.figures import Figures, Measure
from align.tuning.space import Dimension
from align.tuning.trial import Judging, TrialDir, TrialRecord

FAULTS: Final = 3
"""After so many trials that fail one after the other the fault lies elsewhere."""


class Asked(Record):
    """tune.json: what the trials of a folder are trials of.

    Attributes:
        recipe: hash of the whole of it, with what was set on the command line.
        data: hash of the rows, the programs and the probes.
        over: the ends of the ranges.
        steps: of a trial.
        gain: the probes that tell it; none where the held-out rows do.
    """

    format: int = FORMAT
    recipe: str
    data: str
    stage: str
    over: dict[str, tuple[float, float]]
    steps: int
    gain: tuple[str, ...]


@dataclass(frozen=True)
class Budget:
    """What a tuning may cost: trials, minutes of all of them together, or both; the trial at work comes to its end."""

    trials: int | None = None
    minutes: float | None = None

    def allows(self, made: Sequence[TrialRecord]) -> bool:
        """Whether another trial may begin."""
        if self.trials is not None and len(made) >= self.trials:
            return False
        return self.minutes is None or sum(one.seconds for one in made) < 60 * self.minutes


@dataclass(frozen=True)
class Tried:
    """A trial and what was measured of it, by steps."""

    record: TrialRecord
    curve: tuple[Figures, ...]

    @property
    def last(self) -> Figures | None:
        """The last of what was measured; None of one that failed before."""
        return self.curve[-1] if self.curve else None


@dataclass
class Study:
    """A tuning in a folder.

    Attributes:
        load: the recipe with more that is set.
        whole: the recipe as it is.
        steps: of the whole stage; None where that is not known.
        told: is given each trial that is over.
    """

    root: Path
    asked: Asked
    over: tuple[Dimension, ...]
    measure: Measure
    load: Callable[[Sequence[str]], Loaded]
    whole: Loaded
    steps: int | None
    budget: Budget
    console: Console
    told: Callable[[Tried], None]
    made: list[TrialRecord] = field(default_factory=list)

    @property
    def every(self) -> int:
        """Steps between two measurements of a trial."""
        return -(-self.asked.steps // ETA)

    @property
    def plan(self) -> StagePlan:
        """The stage as the recipe has it."""
        return next(plan for plan in self.whole.stages if plan.id == self.asked.stage)

    def run(self) -> list[Tried]:
        """Make the trials that the budget allows, from where it stands; fewer where three fail in turn.

        Raises:
            AlignError: the recipe or the machine has a fault, or the folder is of another tuning or in use.
            KeyboardInterrupt: the trial at work has saved a checkpoint.
        """
        with self._held():
            self._check()
            known = [reading.read(TrialDir(path).record, TrialRecord) for path in self._folders()]
            chooser = Chooser(self.over, self.asked.steps, self.every, self.whole.recipe.seed)
            begun = known.pop() if known and known[-1].state == "running" else None
            for record in known:
                chooser.begin(record.number, record.places)
                self._end(chooser, record)
            while self.budget.allows(self.made) and not self._fails():
                self._next(chooser, begun)
                begun = None
            return [self._tried(record) for record in self.made]

    # ---- the trials -------------------------------------------------------------------------------------------------

    def _next(self, chooser: Chooser, begun: TrialRecord | None) -> None:
        """Make one trial, or go on with the one that was begun."""
        record = self._begin(chooser, begun)
        folder = self._folder(record.number)
        files.write_json(folder.record, record.written())
        same = next((one for one in self.made if one.values == record.values), None)
        if same is not None:
            record = record.but(state=same.state, fault=same.fault, same_as=same.same_as or same.number)
            files.write_json(folder.record, record.written())
        else:
            record = self._made(chooser, record, folder)
        self._end(chooser, record)
        self.told(self._tried(record))

    def _made(self, chooser: Chooser, record: TrialRecord, folder: TrialDir) -> TrialRecord:
        """The record of a trial once it is over."""
        stage, label = folder.run.stage(self.asked.stage), f"trial {record.number}"
        self._take_over(folder)
        started, before = time.monotonic(), record.seconds
        judging = Judging(self.console, folder.log, label, stage, self.measure, chooser.beaten)
        try:
            loaded = self.load([*space.texts(record.values, self.plan), *self._short()])
            record = record.but(state=trial.execute(loaded, folder, self.plan, self.every, judging))
            if record.state == "done" and not self.measure.read(stage):
                what = f"nothing tells what '{self.asked.stage}' gained in {label}: its figure was not measured"
                record = record.but(state="running")
                raise AlignError(what, "name a probe of its task with --gain", exit=Exit.MACHINE)
        except AlignError as error:
            if not self._is_of_the_values(error, record, folder):
                raise
            record = record.but(state="failed", fault=str(error))
        finally:
            record = record.but(seconds=round(before + time.monotonic() - started, 1))
            files.write_json(folder.record, record.written())
        return record

    def _begin(self, chooser: Chooser, begun: TrialRecord | None) -> TrialRecord:
        if begun is not None:
            chooser.begin(begun.number, begun.places)
            return begun
        number = len(self.made) + 1
        places = chooser.begin(number)
        values = {
            one.name: one.own if number == 1 and one.low <= one.own <= one.high else one.at(places[one.name])
            for one in self.over
        }
        return TrialRecord(number=number, values=values, places=places, state="running", seconds=0.0, fault="")

    def _end(self, chooser: Chooser, record: TrialRecord) -> None:
        """Tell the chooser of a trial that is over, and give back the room that it took."""
        tried = self._tried(record)
        chooser.beaten(tried.curve)  # what came too late to end it counts for those that follow
        done = record.state == "done" and tried.last is not None
        chooser.end(tried.last.value if done and tried.last else None)
        trial.strip(self._folder(record.number), self.asked.stage)
        self.made.append(record)

    def _is_of_the_values(self, error: AlignError, record: TrialRecord, folder: TrialDir) -> bool:
        """Whether a fault says something of a trial's values, and not of the recipe or the machine."""
        if error.exit == Exit.BAD_INPUT:  # the recipe's own values were checked
            return record.number > 1
        above = [folder.run.stage(id) for id in executing.before(self.whole, self.plan)]
        return error.exit == Exit.STAGE_FAILED and all(one.outcome.is_file() for one in above)

    def _fails(self) -> bool:
        """Whether so many trials failed in turn that the fault must lie elsewhere."""
        last = [one.state for one in self.made[-FAULTS:]]
        return last == ["failed"] * FAULTS

    def _short(self) -> list[str]:
        """What makes a run of the stage a trial: fewer steps, the warm-up shortened with them; held-out rows are looked
        at when the probes are."""
        at, training = f"stages.{self.asked.stage}.training", self.plan.training
        texts = [f"{at}.max_steps={self.asked.steps}", "trackers=[]", "notify=null"]
        if self.steps and (warm_up := training.get("warmup_steps") or 0) >= 1:
            texts.append(f"{at}.warmup_steps={min(0.99, warm_up / self.steps):g}")
        if self.plan.keys.eval_data is not None and self.plan.program.stage.evaluates:
            texts += [f"{at}.eval_strategy=steps", f"{at}.eval_steps={self.every}", f"{at}.eval_delay=0"]
        return texts

    def _take_over(self, folder: TrialDir) -> None:
        """Have a trial begin with the base's measurements and the earlier stages of those that came before."""
        for one in self.made:
            trial.take_over(self._folder(one.number).run, folder.run, self.asked.stage)

    # ---- the folder -------------------------------------------------------------------------------------------------

    def _tried(self, record: TrialRecord) -> Tried:
        stage = self._folder(record.same_as or record.number).run.stage(self.asked.stage)
        return Tried(record, tuple(self.measure.read(stage)))

    def _folder(self, number: int) -> TrialDir:
        return TrialDir(self.root / "trials" / f"{number:03}")

    def _folders(self) -> Iterator[Path]:
        number = 1
        while self._folder(number).record.is_file():
            yield self._folder(number).root
            number += 1

    def _check(self) -> None:
        """Refuse a folder of another tuning."""
        path = self.root / "tune.json"
        known = reading.whole(path, Asked)
        if known is None:
            files.write_json(path, self.asked.written())
            return
        names = {
            "recipe": "the recipe",
            "data": "its data or probes",
            "stage": "the stage",
            "over": "--over",
            "steps": "--steps",
            "gain": "--gain",
        }
        other = [words for name, words in names.items() if getattr(known, name) != getattr(self.asked, name)]
        if other:
            what = f"'{self.root}' holds trials of another tuning: changed since is {', '.join(other)}"
            raise AlignError(what, "give another --run-dir, or ask as before to go on with these")

    @contextmanager
    def _held(self) -> Iterator[None]:
        lock = FileLock(self.root / ".lock")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise AlignError(f"'{self.root}' is in use by another process", "wait, or give another --run-dir") from None
        except OSError as error:
            what = f"the folder '{self.root}' cannot be written ({error.strerror})"
            raise AlignError(what, "give another --run-dir") from None
        try:
            yield
        finally:
            lock.release()
