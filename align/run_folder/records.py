"""The records of a run: what a stage is asked to do, what it did, and what it hands on."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from align.run_folder.launch import Launch
from align.run_folder.proofs import Proofs

LOADING = "loading"  # what a stage is at until it says otherwise
Gives = Literal["policy", "reward"]
FORMAT = 1  # of a run's files, as this align writes and reads them


class Record(BaseModel):
    """Content of a file of a run. It keeps the keys that it knows and passes over those a newer align may add."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def written(self) -> dict[str, Any]:
        """As it stands in the file: what was given. A key that was not is absent, which is not the same as null."""
        return self.model_dump(mode="json", exclude_unset=True)

    def but(self, **changed: Any) -> Self:
        """A copy with some keys changed.

        Raises:
            TypeError: the record has no such key.
        """
        unknown = changed.keys() - type(self).model_fields.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        return self.model_copy(update=changed)


_FORMERLY_MEASURED = Field(validation_alias=AliasChoices("probes_sha256", "measured"))


class Adapter(BaseModel):
    """One adapter of a policy, in the order in which they were stacked."""

    name: str
    path: str  # relative to the run folder
    method: str
    settings: dict[str, Any]  # the parameterization that made it


class BaseModelIdentity(BaseModel):
    """The base that a policy stands on."""

    name: str  # as the recipe names it: lab, a folder, a Hub id
    path: str  # where its files are on this machine
    identity: str  # hash of its files, or the Hub revision
    revision: str | None = None


class Policy(BaseModel):
    """What a stage hands on: a base with ordered adapters, or full weights in place of the base's own."""

    base: BaseModelIdentity
    quantization: dict[str, Any] | None = None
    weights: str | None = None  # a model folder relative to the run folder, when base weights were trained
    adapters: list[Adapter] = []


class Reward(BaseModel):
    """One thing that scores answers, as found.

    Attributes:
        name: of its figures.
        kind: a reward model that a stage trained, one as files, or a Python function.
        model: of a stage (of this run or another), filled in when it is there.
        root: the run folder that the paths of `model` are relative to; None for this run.
        path: of a model's folder or a function's file.
        function: its name in that file.
        columns: of the rows, which the function cannot do without.
        identity: hash of the content.
    """

    name: str
    kind: Literal["stage", "model", "function"]
    weight: float
    stage: str | None = None
    model: Policy | None = None
    root: str | None = None
    path: str | None = None
    function: str | None = None
    columns: list[str] = []
    identity: str = ""


class Rows(BaseModel):
    """A table of checked rows in the run folder."""

    path: str
    sha256: str
    count: int
    kinds: list[str]


class UserFunction(BaseModel):
    """A function in a user's file, as found.

    Attributes:
        sha256: of the file.
    """

    name: str
    path: str
    sha256: str


class Writing(BaseModel):
    """Rows to replay that a policy writes before the stage begins.

    Attributes:
        keys: the recipe's `replay.self`.
        prompts: what is asked; None where the policy writes that too.
        check: the user's, which says what is kept.
        max_length: tokens of a row that the stage keeps.
    """

    keys: dict[str, Any]
    prompts: Rows | None = None
    check: UserFunction | None = None
    max_length: int | None = None


class ReplayPart(BaseModel):
    """One source of replayed rows; its rows follow those of the source before it in the table.

    Attributes:
        name: as reports show it.
        weight: its share is weight / sum of the weights.
        count: its rows in the table.
        written: whether a policy writes them itself; then the table has none.
    """

    name: str
    weight: float
    count: int
    written: bool = False


class Inside(BaseModel):
    """What is measured of a policy while it is trained.

    Attributes:
        every: steps between two measurements.
        watch: names of the probes; None for all.
        early_stop: whether a limit that is surely broken ends the stage.
        limits: keys of the recipe's `forgetting` that are limits.
        incoming: the stage whose policy comes in, or `base`.
    """

    every: int | Literal["auto"]
    watch: list[str] | None = None
    early_stop: bool = False
    limits: dict[str, Any] = {}
    incoming: str = "base"


class Prompt(BaseModel):
    """A prompt that the base and every policy answer, so that their answers can be read side by side.

    Attributes:
        id: hash of what is asked, and of how long an answer may be.
        value: `{"prompt": text or messages}`, and `tools` where its row has any.
        source: where a prompt of the task comes from, in words; empty for a general one.
    """

    id: str
    kind: Literal["task", "general"]
    value: dict[str, Any]
    source: str = ""


class Ticket(BaseModel):
    """What one stage is asked to do. Written by the parent, read by the child."""

    format: int = 1
    stage: str
    program: str
    program_path: str
    gives: Gives
    fingerprint: str
    seed: int
    policy: Policy  # what comes in
    rewards: list[Reward] = []  # what scores the answers of a stage that samples some
    model: dict[str, Any]  # the recipe's `model`
    parameterization: dict[str, Any]
    keys: dict[str, Any]  # the stage's resolved recipe entry
    training: dict[str, Any]  # with this stage's defaults filled in
    train: Rows
    evaluation: Rows | None
    replay: Rows | None
    replay_ratio: float
    fisher: Rows | None = None  # the rows that the Fisher information of `ewc` is measured on
    writing: Writing | None = None  # replayed rows that a policy writes, in place of `replay`
    rewrite_check: UserFunction | None = None  # says which of the policy's answers replace the data's
    replay_sources: list[ReplayPart] = []  # none in a ticket of an older align: all of `replay` is one
    probes: Any
    latency: bool = False  # whether answers are timed
    probe_items: int | Literal["auto"] = "auto"  # of each skill of the general battery
    probe_budget: float = 0.1  # the share of training that a measurement may cost, where the items are chosen
    planned_rows: int = 0  # that pass through the model in training, as far as is known before
    program_sha256: str
    chat_template: str | None  # the recipe's own, as text
    replays: bool  # whether a stage of the recipe replays the lab's own set, whose skills are known
    warnings: list[str] = []  # of checking the rows; they stand in the outcome too
    probes_sha256: str = _FORMERLY_MEASURED  # of the probes' content: with others it is measured again, not trained
    attempt: int = 1  # the first trains as the recipe says, later ones as `forgetting.retry` changes it
    first: str = ""  # fingerprint of the first attempt, in a later one
    measure_base: bool
    measure_only: bool = False
    inside: Inside | None = None
    prompts: list[Prompt] = []  # whose answers are kept, beside the probes
    ask_base: bool = False  # these alone, where the probes of the base are measured already
    ask_only: bool = False  # the same of a stage that is trained; with `measure_only`
    processes: int
    parts: int = 1  # that each minibatch of the recipe is cut into, where the memory was too small for it
    launch: Launch = Launch()
    trackers: list[str]
    run_name: str
    resume_from: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _launched(cls, data: Any) -> Any:
        """A ticket of an older align says no more than how many processes there are."""
        if isinstance(data, dict) and "launch" not in data and "processes" in data:
            return {**data, "launch": {"processes": data["processes"]}}
        return data

    @property
    def made_from(self) -> str:
        """What identifies all that is made before training: the policy that came in, its base, data, prompts and seed.
        No attempt changes these, so it is the first attempt's fingerprint."""
        return self.first or self.fingerprint


class Insight(BaseModel):
    """What was measured of a policy while it was trained.

    Attributes:
        measurements: how many, and what they took: wall and CPU seconds, within those of the training.
        every: steps between two of them; None where even one would have cost too much.
        stopped: the step at which a broken limit ended the stage; None where none did.
        kept: the step whose weights the stage then handed on, 0 for those that came in.
        reasons: what was broken.
    """

    measurements: int
    seconds: float
    cpu_seconds: float
    every: int | None = None
    stopped: int | None = None
    kept: int | None = None
    reasons: list[str] = []


class Fisher(BaseModel):
    """The Fisher information that a stage's `ewc` weighs by; `fisher.json`, beside the file with its diagonal.

    Attributes:
        made_for: fingerprint of the stage, of its first attempt.
        sha256: of the file.
        kind: `empirical` or `sampled`.
        rows, tokens: examples, and the learnt tokens in them.
        weights: the numbers in the diagonal.
        mean: of the diagonal before it was divided by it. With `weight` equal to it, EWC's lambda is 1.
        seconds: wall time.
    """

    made_for: str
    sha256: str
    kind: str
    rows: int
    tokens: int
    weights: int
    mean: float
    seconds: float


class Outcome(BaseModel):
    """What a stage did. Written last: its presence means that training and measuring are whole."""

    model_config = ConfigDict(extra="allow")
    format: int = 1
    stage: str
    program: str
    status: Literal["done"] = "done"
    fingerprint: str
    seconds: float
    cpu_seconds: float
    measure_seconds: float
    measure_cpu_seconds: float
    probes_sha256: str = _FORMERLY_MEASURED
    world_size: int
    distributed_type: str
    global_batch_size: int
    steps: int
    parameters: dict[str, int]
    parameterization: dict[str, Any]
    dtype: str | None = None  # that the base was loaded in, as far as it is not quantised; None of an older run
    trained: list[str] = []  # the modules that hold trainable weights
    metrics: dict[str, Any]
    data: dict[str, Any]
    policy: Policy | None = None
    reward: Policy | None = None  # a reward model, its last adapter or its weights with the head `score`
    merge: dict[str, Any] | None = None
    penalties: dict[str, float] = {}  # the weight of each that kept the policy near its start: ewc, l2_sp, kl
    fisher: Fisher | None = None
    inside: Insight | None = None
    proofs: Proofs = Proofs()  # that what was trained and saved is what was asked for
    peak_memory_bytes: int | None = None
    resumed_from: str | None = None
    warnings: list[str] = []
    versions: dict[str, str] = {}
    artifacts: dict[str, dict[str, Any]]


class Shortage(Record):
    """Where in training the memory ran out: the phase, as heartbeats have it, and the last step that was made."""

    phase: str
    step: int


class Failure(Record):
    """error.json: why a stage failed and what to do.

    Attributes:
        exit: the code that the command ends with.
        traceback: of what nobody expected.
        rank: the process that failed first.
        secondhand: all that went wrong is that another process was gone.
        out_of_memory: where in training the memory ran out: fewer rows at a time may fit.
    """

    what: str
    remedy: str = ""
    exit: int = 1
    traceback: str | None = None
    rank: int = 0
    secondhand: bool = False
    out_of_memory: Shortage | None = None
