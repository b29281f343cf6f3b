"""The recipe keys of a stage whose answers are scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from align.functions.declared import NAMED
from align.stage.keys import Setting, StageKeys


class RewardSource(BaseModel):
    """What scores the answers. In a recipe, a plain string is short for `{source: string}`."""

    model_config = ConfigDict(extra="forbid")
    source: str = Field(
        min_length=1,
        description="a stage of this recipe, a folder, a Hugging Face id, or a function ./rewards.py:polite",
    )
    weight: float = Field(1.0, description="weight of its scores in the sum", allow_inf_nan=False)
    revision: str | None = Field(None, description="branch, tag or commit of a Hub model")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class RewardedKeys(StageKeys):
    """The recipe keys of every stage that learns from rewards."""

    reward: RewardSource | Annotated[list[RewardSource], Field(min_length=1)] = Field(
        description="what scores the answers: a stage, a folder, a Hugging Face id, ./rewards.py:polite, or several "
        "with weights"
    )

    def contradictions(self, setting: Setting) -> list[tuple[str, str, str]]:
        """For vLLM, TRL merges the adapter into the base at every rollout: in 4 bits most of it would be lost."""
        if not (setting.own.quantized and self.training.get("use_vllm")):
            return []
        method = setting.own.keys.method
        what = f"vLLM cannot sample from {method} on a quantised base: TRL would merge it into those weights"
        return [("training", what, "use `method: lora`, or leave `use_vllm` out")]

    @property
    def sources(self) -> list[RewardSource]:
        """Those that are summed."""
        return self.reward if isinstance(self.reward, list) else [self.reward]

    @property
    def calls(self) -> bool:
        """Whether one of them is a function."""
        return any(NAMED.fullmatch(one.source) for one in self.sources)


def named(value: Any) -> list[str]:
    """The sources that a raw `reward:` names, whatever else may be wrong with it."""
    listed = value if isinstance(value, list) else [value]
    found = [one.get("source") if isinstance(one, Mapping) else one for one in listed]
    return [one for one in found if isinstance(one, str)]
