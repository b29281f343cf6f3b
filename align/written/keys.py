"""`self:` of a recipe's `replay`: rows that the policy writes itself. No torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from align.data.sources import DataSource


class SelfWritten(BaseModel):
    """Rows to replay that a policy writes, before the stage begins to train."""

    model_config = ConfigDict(extra="forbid")
    by: Literal["incoming", "base"] = Field(
        "incoming", description="who writes: the policy that the stage starts from, or the base model"
    )
    prompts: Literal["task"] | DataSource | list[DataSource] | None = Field(
        None,
        description="what is asked: a data source; `task`, rows of the stage's own data, which are then not trained "
        "on; without it the policy writes the questions too",
    )
    rows: int = Field(200, ge=1, le=1_000_000, description="how many rows are written, before the filters")
    max_new_tokens: int = Field(128, ge=1, description="longest answer")
    min_new_tokens: int = Field(1, ge=1, description="shortest answer that is kept")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="1 samples from the policy's distribution")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens that make up this probability")
    max_repetition: float = Field(
        0.3, ge=0, le=1, description="drop an answer of which a larger share of 4-grams occurred in it before"
    )
    unfinished: Literal["drop", "keep"] = Field(
        "drop", description="answers that `max_new_tokens` cut off; `keep` teaches the policy to stop there"
    )
    check: str | None = Field(None, description="a function ./check.py:right that says which rows are kept")

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            what = f"no answer has {self.min_new_tokens} tokens at least and {self.max_new_tokens} at most"
            raise ValueError(f"{what}: write a larger `max_new_tokens`, or a smaller `min_new_tokens`")
        return self
