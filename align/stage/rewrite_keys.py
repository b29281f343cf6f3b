"""`rewrite:` of an sft stage: answers of the policy itself in place of the data's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from align.data.formats import Example
from align.stage import rewarded
from align.stage.keys import StageKeys
from align.stage.rewarded import RewardedKeys, RewardSource

Fault = tuple[str, str, str]
GIVEN = ("prompt", "completion", "answer")  # what a checker may ask for


class ByReward(BaseModel):
    """Accepts the sample with the highest reward."""

    model_config = ConfigDict(extra="forbid")
    reward: RewardSource | Annotated[list[RewardSource], Field(min_length=1)] = Field(
        description="what scores the samples, as `reward` of a ppo stage"
    )
    min: float | None = Field(
        None, allow_inf_nan=False, description="least score; without it, that of the data's own answer"
    )

    @property
    def sources(self) -> list[RewardSource]:
        """Those that are summed."""
        return self.reward if isinstance(self.reward, list) else [self.reward]


class Rewrite(BaseModel):
    """Answers that the policy samples replace the data's where they are accepted."""

    model_config = ConfigDict(extra="forbid")
    by: Literal["self"] = Field("self", description="the policy that the stage starts from")
    accept: str | ByReward | None = Field(
        None, description="what accepts a sample: a function ./check.py:right, or a `reward`; required"
    )
    samples: int = Field(4, ge=1, le=1024, description="how many answers are sampled for each prompt")
    max_new_tokens: int = Field(128, ge=1, description="longest answer; one that is cut off is not accepted")
    temperature: float = Field(0.7, gt=0, allow_inf_nan=False, description="of sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens that make up this probability")
    otherwise: Literal["keep", "drop"] = Field(
        "keep", description="rows of which no sample is accepted: keep the data's answer, or drop the row"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"by": value} if isinstance(value, str) else value

    @property
    def checker(self) -> str | None:
        """The function that accepts, where it is one."""
        return self.accept if isinstance(self.accept, str) else None

    def faults(self, rows: Sequence[Example] | None = None) -> list[Fault]:
        """What is wrong with it, before rows are read and with them."""
        if rows is None:
            what = "`rewrite` has nothing that says which of the policy's answers are right"
            remedy = "write `rewrite: {by: self, accept: ./check.py:right}`, or `accept: {reward: ...}`"
            return [] if self.accept is not None else [("rewrite", what, remedy)]
        texts = sum(row.kind == "text" for row in rows)
        if not texts:
            return []
        count = "1 row is" if texts == 1 else f"{texts:,} of {len(rows):,} rows are"
        what = f"`rewrite` answers the prompts of the data, but {count} plain text, which asks nothing"
        return [("rewrite", what, "give rows with a prompt, or leave `rewrite` out")]


def scoring(keys: StageKeys) -> tuple[list[RewardSource], tuple[str | int, ...]]:
    """What scores answers in a stage, and under which key it stands: `reward`, or that of `rewrite.accept`."""
    if isinstance(keys, RewardedKeys):
        return keys.sources, ("reward",)
    rewrite = getattr(keys, "rewrite", None)
    if isinstance(rewrite, Rewrite) and isinstance(rewrite.accept, ByReward):
        return rewrite.accept.sources, ("rewrite", "accept", "reward")
    return [], ()


def named(entry: Any) -> list[str]:
    """The sources that a raw entry of a stage names, whatever else may be wrong with it."""
    inner = entry
    for key in ("rewrite", "accept", "reward"):
        inner = inner.get(key) if isinstance(inner, Mapping) else None
    own = entry.get("reward") if isinstance(entry, Mapping) else None
    return rewarded.named(own if own is not None else inner)
