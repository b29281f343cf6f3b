"""run.json: the stages of a run, in their order, and how far each of them is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, field_validator

from align.run_folder.records import FORMAT, Record

STAGE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")

Status: TypeAlias = Literal["pending", "running", "done", "stopped", "failed", "interrupted"]


def _moment(value: str | None) -> str | None:
    """ISO 8601; raises ValueError where it is not."""
    if value is not None:
        datetime.fromisoformat(value)
    return value


Moment: TypeAlias = Annotated[str | None, AfterValidator(_moment)]


class Kept(Record):
    """A record that is read, changed and written again: what a newer align has added stays in it."""

    model_config = ConfigDict(frozen=True, extra="allow")


class StageEntry(Kept):
    """One stage: what it runs, on whose output, and how far it is.

    Attributes:
        inputs: the stage whose policy it takes, or `base`, and those whose reward models it takes.
        started, ended: ISO 8601.
        seconds: of training and measuring.
        resumed_from: name of a checkpoint.
    """

    stage: str
    about: str | None = None
    inputs: Mapping[str, str | list[str]] = {}
    fingerprint: str | None = None
    status: Status = "pending"
    started: Moment = None
    resumed_from: str | None = None
    ended: Moment = None
    seconds: float | None = None


class Pinned(Record):
    """The commit of a model of the Hub that a run began with; `base` is its name and revision in the recipe."""

    base: tuple[str, str | None]
    commit: str


class RunRecord(Kept):
    """run.json.

    Attributes:
        align: the version that wrote it.
        pipeline: its name; None for stages of the recipe alone.
        probes: a set by its name, or `own`.
        redo: what the command line asked to be done again, until it is done.
        base: hash of what the base row of the matrix depends on.
    """

    format: int = FORMAT
    name: str
    created: Moment = None
    stages: Mapping[str, StageEntry] = {}
    align: str = "unknown"
    pipeline: str | None = None
    order: tuple[str, ...] = ()
    probes: str | None = None
    redo: str | None = None
    hub: Pinned | None = None
    base: str | None = None

    @field_validator("stages")
    @classmethod
    def _names(cls, stages: Mapping[str, StageEntry]) -> Mapping[str, StageEntry]:
        """A name is that of a folder, which may be moved away: it must not lead out of the run."""
        wrong = next((name for name in stages if not STAGE_NAME.fullmatch(name)), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is no name of a stage")
        return stages

    def written(self) -> dict[str, Any]:
        """Without `redo` where nothing is asked again."""
        return {key: value for key, value in super().written().items() if key != "redo" or value is not None}
