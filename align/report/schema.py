"""What the report reads beside the records of `align/run_folder/records.py`. Missing keys take the defaults here."""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from align.rl.rollouts import Rollout
from align.run_folder.records import Decision, Outcome

FORMAT: Final = 1
"""The format of run.json and forgetting.json that this reader knows."""

Interval: TypeAlias = tuple[float | None, float | None]
"""Low and high; None for an end that is not finite."""

Verdict: TypeAlias = Literal["FORGOT", "OK", "UNCLEAR"]


class Record(BaseModel):
    """A frozen record that keeps the keys it knows and passes over the ones a newer align may add."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class StageEntry(Record):
    """One stage in run.json: what it runs, on whose output, and how far it is."""

    stage: str
    about: str | None = None
    inputs: Mapping[str, JsonValue] = {}
    status: str = "pending"
    fingerprint: str | None = None
    started: float | str | None = None
    ended: float | str | None = None
    seconds: float | None = None
    resumed_from: str | None = None


class Run(Record):
    """run.json."""

    format: int = FORMAT
    name: str
    align: str = "unknown"
    pipeline: str | None = None
    created: str | None = None
    order: tuple[str, ...] = ()
    stages: Mapping[str, StageEntry] = {}
    versions: Mapping[str, str] = {}
    probes: str | None = None


class Broken(Record):
    """An answer that was right before and is wrong now."""

    probe: str
    id: str | int
    split: str | None = None
    prompt: str = ""
    answer: str = ""
    before: str = ""
    after: str = ""


class Sample(Record):
    """One answer of a stage, with the marks that its probe gave it: every further key that is true or false."""

    probe: str
    id: str | int
    split: str | None = None
    prompt: str = ""
    output: str = ""
    marks: Mapping[str, bool] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, row: object) -> object:
        if not isinstance(row, dict):
            return row
        return row | {"marks": {key: value for key, value in row.items() if isinstance(value, bool)}}


class Probe(Record):
    """What one probe measures; `replayed` says whether the replay data rehearse it (None: there is no replay); `limit`
    is what its verdicts were held against, a drop or a perplexity ratio (None: it has no verdict)."""

    metric: str = "accuracy"
    higher_is_better: bool = True
    kind: str = "skill"
    replayed: bool | None = None
    n: int | None = None
    limit: float | None = None

    @property
    def stands_apart(self) -> bool:
        """Whether it is no capability: agreement with the base moves with anything that is learnt."""
        return self.kind == "agreement" and self.limit is None


class Effect(Record):
    """A change with its 95 % interval, which is that of the `ratio` after / before where there is one (perplexity)."""

    delta: float | None = None
    ratio: float | None = None
    ci95: Interval | None = None
    p_value: float | None = None


class Cell(Effect):
    """One entry of the matrix; the change is counted from the base."""

    score: float | None = None
    n: int | None = None
    verdict: Verdict | None = None
    lost: int | None = None
    gained: int | None = None
    items_to_decide: int | None = None
    since_parent: Effect | None = None


class Undefined(Record):
    """A figure that has no meaning here, and why."""

    undefined: str


Figure: TypeAlias = float | Undefined | None
"""A number, or the reason why there is none."""


class Forgetting(Record):
    """forgetting.json."""

    format: int = FORMAT
    split: str | None = None
    stages: tuple[str, ...] = ()
    parent: Mapping[str, str] = {}
    no_row: Mapping[str, str] = {}
    probes: Mapping[str, Probe] = {}
    left_out: Mapping[str, str] = {}
    matrix: Mapping[str, Mapping[str, Cell]] = {}
    mean: Mapping[str, Mapping[str, Cell]] = {}
    backward_transfer: Mapping[str, Figure] = {}
    average_forgetting: Mapping[str, Figure] = {}
    thresholds: Mapping[str, JsonValue] = {}
    advice: tuple[str, ...] = ()


class Failure(Record):
    """error.json: why a stage failed and what to do."""

    what: str
    remedy: str = ""


class Step(Record):
    """One line of metrics.jsonl: the optimiser step and every number that was logged at it."""

    step: float
    values: Mapping[str, float] = {}


class SpectrumModule(Record):
    """One weight matrix of a scan."""

    name: str
    type: str
    snr: float
    degenerate: bool = False


class Spectrum(Record):
    """spectrum.json: the signal-to-noise ratios of the layers, and which of them were trained."""

    estimator: str
    snr_threshold: float
    modules: tuple[SpectrumModule, ...] = ()
    chosen: tuple[str, ...] = ()


class ScoreHistogram(Record):
    """How often a reward model gave which score: counts between `edges`, of the better and of the worse answers."""

    edges: tuple[float, ...]
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]

    @model_validator(mode="after")
    def _fits(self) -> "ScoreHistogram":
        if not len(self.edges) - 1 == len(self.chosen) == len(self.rejected) > 0:
            raise ValueError("the counts are not one fewer than the edges")
        return self


class CalibrationBin(Record):
    """Pairs of about the same predicted share of right choices, and the share of them that was right."""

    predicted: float
    observed: float
    count: int


class Quantization(Record):
    """quantization.json: perplexity of running text in the base's own precision and quantised, and their ratio."""

    before: float | None = None
    after: float | None = None
    ratio: float | None = None
    ci95: Interval | None = None
    n: int | None = None


class Prompts(Record):
    """The prompts on which branches were compared: those of a stage's rows."""

    of: str = ""
    held_out: bool = False
    count: int | None = None


class Compared(Record):
    """What one policy's sampled answers to these prompts score; `kl` to the parent, nats an answer."""

    score: float | None = None
    kl: float | None = None
    length: float | None = None


class Comparison(Record):
    """comparison.json: the policies of branches on the same prompts, by one reward."""

    format: int = FORMAT
    parent: str
    reward: str = ""
    prompts: Prompts = Prompts()
    stages: Mapping[str, Compared] = {}


class StageRecord(Record):
    """Everything that the folder of one stage holds; what has not been written yet is None or empty."""

    id: str
    entry: StageEntry
    outcome: Outcome | None = None
    decision: Decision | None = None
    steps: tuple[Step, ...] = ()
    broken: tuple[Broken, ...] = ()
    samples: tuple[Sample, ...] = ()
    log_tail: tuple[str, ...] = ()
    failure: Failure | None = None
    spectrum: Spectrum | None = None
    rollouts: tuple[Rollout, ...] = ()

    def series(self, key: str) -> list[tuple[float, float]]:
        """The points (step, value) of one logged number, in the order of the file."""
        return [(line.step, line.values[key]) for line in self.steps if key in line.values]


class Report(Record):
    """A run folder. `forgetting` is None as long as nothing has been measured."""

    run: Run
    recipe: str = ""
    stages: tuple[StageRecord, ...] = ()
    forgetting: Forgetting | None = None
    comparison: Comparison | None = None
    quantization: Quantization | None = None
