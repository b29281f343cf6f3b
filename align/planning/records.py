"""What the command asks of the process that traces, and what it answers. No torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from align.run_folder.records import Record, Ticket

Part = Literal["weights", "gradients", "optimizer", "activations", "logits", "key-value cache", "other models"]
PARTS: tuple[Part, ...] = (
    *("weights", "other models", "optimizer", "gradients", "activations", "logits", "key-value cache"),
)

Method = Literal["trace", "formula", "unknown"]

Moments = dict[str, dict[Part, int]]
"""By phase of a stage, the bytes of each part at the moment when most were alive in it."""


class Asked(Record):
    """A stage to trace.

    Attributes:
        ticket: whose rows are those of the longest batch alone.
        layers: of the base.
        depths: numbers of layers to trace it with.
        block: bytes that an allocation is rounded up to.
        casts: whether operands of several precisions are copied into one first, as on a CPU.
    """

    ticket: Ticket
    layers: int
    depths: tuple[int, ...]
    block: int = 1
    casts: bool = True


class Traced(Record):
    """What came of it.

    Attributes:
        moments: by depth.
        failed: why it could not be traced; None where it was.
    """

    stage: str
    moments: dict[int, Moments] = Field(default_factory=dict)
    failed: str | None = None


class Memory(Record):
    """The most that a stage holds at once.

    Attributes:
        peak: bytes.
        parts: what they are, in bytes.
        phase: when.
        left_out: what may come on top, in words.
    """

    peak: int
    parts: dict[Part, int]
    phase: str
    left_out: tuple[str, ...] = ()


class Standing(Record):
    """What the command would do with a stage.

    Attributes:
        why: in words.
        peak: bytes that it took, where it is done.
    """

    action: Literal["run", "resume", "skip"]
    why: str
    peak: int | None = None


class Inherited(Record):
    """A value that a stage has from elsewhere.

    Attributes:
        source: `recipe` where it stands at its top, else `default`.
    """

    key: str
    value: Any
    source: Literal["recipe", "default"]


class StageForecast(Record):
    """What is known of a stage before it runs.

    Attributes:
        rows, held_out, replayed: that it trains on, is evaluated on, and replays beside the rows.
        steps: updates; None where only the run can tell.
        longest: tokens of its longest row.
        tokens: about how many pass through the model in training; None of packed rows and of sampled answers.
        memory: None where it is not known.
        method: `trace`, or `formula` where the stage could not be traced, or `unknown`.
        why: it could not.
        fits: whether the device holds it; None where that is not known.
        disk: bytes that its checkpoints and its result take at most.
        seconds_per_step: of an update on this machine, where it was measured.
    """

    id: str
    program: str
    policy: str
    parameterization: str
    standing: Standing
    rows: int
    held_out: int
    replayed: int
    global_batch: int
    steps: int | None
    longest: int
    tokens: int | None
    memory: Memory | None
    method: Method
    why: str | None
    fits: bool | None
    disk: int | None
    inherited: tuple[Inherited, ...]
    seconds_per_step: float | None = None

    @property
    def seconds(self) -> float | None:
        """Of all updates."""
        return None if self.seconds_per_step is None or self.steps is None else self.seconds_per_step * self.steps


class Forecast(Record):
    """The plan of a run.

    Attributes:
        device: that it is for, in words.
        memory: bytes of it.
    """

    name: str
    run_dir: str
    device: str
    memory: int | None
    stages: tuple[StageForecast, ...]
    notes: tuple[str, ...]
    warnings: dict[str, tuple[str, ...]]
