"""Runs side by side, as `align compare --json` writes them. Every difference is a run minus the first run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import JsonValue

from align.forgetting.measurements import Split
from align.forgetting.statistics import Verdict
from align.forgetting.table import Effect, Number
from align.run_folder.records import FORMAT, Record

Outcome: TypeAlias = Literal["better", "worse", "mixed", "unsure"]


class RunEntry(Record):
    """One of the runs.

    Attributes:
        label: what it is called here: its folder's name, or the whole path where two have the same name.
        stages: those that are measured, in order; the last is compared with the last of the others.
        under_way: whether a process is at work on it.
    """

    label: str
    folder: str
    name: str
    align: str
    stages: tuple[str, ...]
    under_way: bool = False


class Value(Record):
    """What a run scores at a probe, and the verdict on it against its own base."""

    score: Number = None
    verdict: Verdict | None = None


class Difference(Effect):
    """A run against the first one on the same items; `ci95` is of `ratio` where there is one, else of `delta`.

    Attributes:
        direction: better or worse where the whole interval says so.
        lost, gained: items that the run has worse, and better, than the first run; None of perplexity.
    """

    direction: Literal["better", "worse"] | None = None
    lost: int | None = None
    gained: int | None = None


class Row(Record):
    """One probe, or the mean of the skills: a value of each run, and a difference of each but the first."""

    name: str
    kind: str
    metric: str = "accuracy"
    higher_is_better: bool = True
    n: int
    values: tuple[Value, ...]
    differences: tuple[Difference, ...]


class Table(Record):
    """The policies after one stage of each run; `mean` is None where no skill was measured."""

    stages: tuple[str, ...]
    rows: tuple[Row, ...]
    mean: Row | None = None


class Training(Record):
    """What a stage took and where it ended; None where it was not recorded.

    Attributes:
        train_loss: mean of the last tenth of what was logged.
        eval_loss: the last.
        kl: nats an answer, of a stage that samples answers.
        acted: what the gate put in place of the policy as trained, as `rolled back`; None where nothing.
    """

    steps: int | None = None
    batch: int | None = None
    rows: int | None = None
    replay_rows: int | None = None
    trainable: int | None = None
    train_loss: Number = None
    eval_loss: Number = None
    kl: Number = None
    cpu_seconds: Number = None
    peak_memory_bytes: int | None = None
    acted: str | None = None


class Finding(Record):
    """One run against another: by the mean of the skills, the tasks and the perplexities of the last policies.

    Attributes:
        better, worse: those of them that surely differ.
        sentence: the same in words.
    """

    run: str
    against: str
    outcome: Outcome
    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    sentence: str = ""


class RunsCompared(Record):
    """Runs of one base that were asked the same, side by side.

    Attributes:
        tables: the last policies, then the stages that all runs have by the same name.
        left_out: probes that are not compared, and why.
        training: stage -> an entry for each run, None where it has no such stage.
        settings: dotted keys of the recipes that differ, with the value in each run.
        best: the run that is better than every other for certain.
    """

    format: int = FORMAT
    split: Split
    runs: tuple[RunEntry, ...]
    tables: tuple[Table, ...]
    left_out: Mapping[str, str] = {}
    training: Mapping[str, tuple[Training | None, ...]] = {}
    settings: Mapping[str, tuple[JsonValue, ...]] = {}
    findings: tuple[Finding, ...] = ()
    best: str | None = None
