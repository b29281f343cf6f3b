"""What lies beside the scores in a folder of measurements: answers, and what quantising the base costs. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from align.forgetting.measurements import Split
from align.forgetting.table import Interval, Number
from align.run_folder.records import Record


class BrokenAnswer(Record):
    """A line of broken.jsonl: an answer that was right in the base and is wrong now."""

    probe: str
    id: str | int
    split: Split | None = None
    prompt: str = ""
    answer: str = ""
    before: str = ""
    after: str = ""


class MendedAnswer(Record):
    """A line of mended.jsonl: an answer that was wrong in the base and is right now; `before` is empty where what the
    base said was not written."""

    probe: str
    id: str | int
    split: Split | None = None
    prompt: str = ""
    before: str = ""
    after: str = ""


class Sample(Record):
    """A line of samples.jsonl: an answer with the marks that its probe gave it, which are keys of the line."""

    probe: str
    split: Split | None = None
    id: str | int
    prompt: str = ""
    output: str = ""
    marks: Mapping[str, bool] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, line: Any) -> Any:
        """Every further key that is true or false."""
        if not isinstance(line, dict) or isinstance(line.get("marks"), Mapping):
            return line
        return line | {"marks": {key: value for key, value in line.items() if isinstance(value, bool)}}

    def written(self) -> dict[str, Any]:
        """With a key for each mark."""
        line = super().written()
        line |= line.pop("marks", {})
        return line


class Latency(Record):
    """latency.json: median wall seconds of a greedy answer over `answers` of at most `most_tokens` tokens."""

    seconds: Number = None
    answers: int = 0
    most_tokens: int = 0


class BatterySize(Record):
    """battery.json: how many items of each skill of the general battery the measurements of a run have, and why.

    Attributes:
        items: of each skill.
        budget: the share of the first stage's training that a measurement may cost.
        planned_tokens: tokens of that training.
        tokens: of a measurement of the fewest items, those that are read.
        planned_seconds, seconds: what the training and a measurement of `items` were foreseen to take; None where
            nothing was timed.
        within: whether the measurement is within the budget.
    """

    items: int
    budget: float
    planned_tokens: int
    tokens: int
    planned_seconds: float | None = None
    seconds: float | None = None
    within: bool


class Answer(Record):
    """A line of answers.jsonl: a prompt that the base and every policy are asked, and what this one answers, greedily.

    Attributes:
        id: the same for the same prompt.
        kind: task or general.
        source: where a prompt of the task comes from, in words.
        tokens: of the answer, without its end.
        cut: whether the answer had not ended when it was as long as is asked for.
    """

    id: str
    kind: str = "task"
    prompt: str = ""
    source: str = ""
    answer: str = ""
    tokens: int | None = None
    cut: bool = False


class QuantizationCost(Record):
    """quantization.json: perplexity of running text in the base's own precision and quantised, and their ratio."""

    before: Number = None
    after: Number = None
    ratio: Number = None
    ci95: Interval | None = None
    n: int | None = None
