"""`replay:` old rows that a stage learns again beside its own, so that less is forgotten. No torch."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from align.data.sources import DataSource
from align.written.keys import SelfWritten


class Origin(BaseModel):
    """Where replayed rows come from: one of its keys is given."""

    model_config = ConfigDict(extra="forbid")
    data: DataSource | list[DataSource] | None = Field(
        None, description="rows that represent what must not be forgotten: a file, a folder, a Hub id, lab/general"
    )
    stage: str | None = Field(
        None,
        min_length=1,
        description="an earlier stage, which this one goes on from: the rows that it trained on, without those that "
        "it replayed",
    )
    self: SelfWritten | None = Field(None, description="rows that the policy writes itself; `{}` for the defaults")

    @property
    def given(self) -> list[str]:
        """The names of the origins that are given."""
        return [name for name in Origin.model_fields if getattr(self, name) is not None]

    @property
    def label(self) -> str:
        """What the rows are called in reports."""
        if self.stage is not None:
            return f"stage {self.stage}"
        if self.self is not None:
            return "the policy itself"
        listed = self.data if isinstance(self.data, list) else [self.data] if self.data else []
        return " + ".join(source.source for source in listed)

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the origins that it is not."""
        return {name: value for name, value in handler(self).items() if value is not None}


class ReplaySource(Origin):
    """One of several sources of replayed rows."""

    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="its share of the replayed rows is weight / sum of the weights"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.given) != 1:
            raise ValueError(_not_one("a source of the replay", self.given, list(Origin.model_fields)))
        return self


class Replay(Origin):
    """Old rows beside a stage's own, from one source or from several."""

    sources: list[ReplaySource] | None = Field(
        None, min_length=1, description="several sources, each with a weight, instead of one"
    )
    ratio: float = Field(ge=0, lt=1, description="their share of the training rows: 0.05 is one row in twenty")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [*self.given, *(["sources"] if self.sources is not None else [])]
        if len(given) != 1:
            raise ValueError(_not_one("the replay", given, [*Origin.model_fields, "sources"]))
        seen = set[str]()
        for source in self.sources or ():
            same = json.dumps(source.model_dump(mode="json", exclude={"weight"}), sort_keys=True)
            if same in seen:
                what = f"two sources of the replay are '{source.label}'"
                raise ValueError(f"{what}: write it once, with the sum of their weights")
            seen.add(same)
        if sum(source.self is not None for source in self.sources or ()) > 1:
            raise ValueError("two sources of the replay are `self`: write one of them")
        return self

    @property
    def each(self) -> list[ReplaySource]:
        """The sources; a single one has all the weight."""
        own = {name: getattr(self, name) for name in self.given}
        return self.sources if self.sources is not None else [ReplaySource(**own)]


def _not_one(what: str, given: list[str], known: list[str]) -> str:
    listed = f"{', '.join(f'`{name}`' for name in known[:-1])} or `{known[-1]}`"
    if not given:
        return f"{what} has no rows: write {listed}"
    return f"{what} has {' and '.join(f'`{name}`' for name in given)}: write one of {listed}"
