"""The report's own view of a run folder. What the files of one hold is declared where they are written."""

from collections.abc import Mapping

from align.forgetting.inside import Measured
from align.forgetting.records import Answer, BrokenAnswer, MendedAnswer, QuantizationCost, Sample
from align.forgetting.table import Forgetting
from align.rl.rollouts import Rollout
from align.run_folder.comparison import ComparisonResult
from align.run_folder.decisions import Decision
from align.run_folder.records import Failure, Outcome, Record
from align.run_folder.run_record import RunRecord, StageEntry
from align.spectrum.records import Spectrum
from align.written.keep import Example


class Step(Record):
    """One line of metrics.jsonl: the optimiser step and every number that was logged at it."""

    step: float
    values: Mapping[str, float] = {}


class StageRecord(Record):
    """Everything that the folder of one stage holds; what has not been written yet is None or empty."""

    id: str
    entry: StageEntry
    outcome: Outcome | None = None
    decision: Decision | None = None
    steps: tuple[Step, ...] = ()
    broken: tuple[BrokenAnswer, ...] = ()
    mended: tuple[MendedAnswer, ...] = ()
    samples: tuple[Sample, ...] = ()
    answers: tuple[Answer, ...] = ()
    log_tail: tuple[str, ...] = ()
    at: str = ""  # what it says that it is at, while it runs
    failure: Failure | None = None
    spectrum: Spectrum | None = None
    rollouts: tuple[Rollout, ...] = ()
    inside: tuple[Measured, ...] = ()
    own_rows: tuple[Example, ...] = ()  # that the policy wrote
    tried_seconds: float = 0.0  # of attempts that do not stand in its folder, and of measuring shares

    def series(self, key: str) -> list[tuple[float, float]]:
        """The points (step, value) of one logged number, in the order of the file."""
        return [(line.step, line.values[key]) for line in self.steps if key in line.values]


class Report(Record):
    """A run folder.

    Attributes:
        live: whether the run is under way.
        forgetting: None as long as nothing has been measured.
        base_seconds: what measuring the base took; None where that is not known.
    """

    run: RunRecord
    live: bool = False
    recipe: str = ""
    stages: tuple[StageRecord, ...] = ()
    forgetting: Forgetting | None = None
    comparison: ComparisonResult | None = None
    quantization: QuantizationCost | None = None
    base_seconds: float | None = None
    base_answers: tuple[Answer, ...] = ()
