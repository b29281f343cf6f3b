"""What parent and child tell each other: tasks in the run's queue, one a file; and lines in a stage's progress.jsonl.

What a stage did and why it failed are records of its folder; its figures are the lines of metrics.jsonl.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from align.run_folder import files
from align.run_folder.comparison import ComparisonRequest
from align.run_folder.paths import RunDir


class Execute(BaseModel):
    """A stage, whose ticket lies in its folder."""

    do: Literal["execute"] = "execute"
    stage: str


class Compare(BaseModel):
    """The branches of the run, side by side."""

    do: Literal["compare"] = "compare"
    branches: ComparisonRequest


class Interpolate(BaseModel):
    """The largest share of a stage's update within the limits; the request lies in its folder."""

    do: Literal["interpolate"] = "interpolate"
    stage: str


class Finish(BaseModel):
    """Nothing more."""

    do: Literal["finish"] = "finish"


Message = Annotated[Execute | Compare | Interpolate | Finish, Field(discriminator="do")]
_ANY: TypeAdapter[Execute | Compare | Interpolate | Finish] = TypeAdapter(Message)


class Told(BaseModel):
    """What a stage tells beside its figures.

    Attributes:
        at: what it is at while it does not train.
        done, of: how much of that is done.
        inside: what was measured while it trains, in short.
        said: a line that stays.
    """

    time: float = 0.0
    at: str | None = None
    done: int | None = None
    of: int | None = None
    inside: str | None = None
    said: str | None = None
    warning: str | None = None


def tell(path: Path, told: Told) -> None:
    """Add a line to progress.jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(told.model_dump(exclude_none=True)) + "\n")


def send(run: RunDir, number: int, message: Execute | Compare | Interpolate | Finish) -> None:
    """Put the message with this number into the queue."""
    files.write_json(run.asked(number), message.model_dump(mode="json"))


def receive(run: RunDir, number: int) -> Execute | Compare | Interpolate | Finish | None:
    """The message with this number; None as long as it has not been sent."""
    raw = files.read_json(run.asked(number))
    return None if raw is None else _ANY.validate_python(raw)
