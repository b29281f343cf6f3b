"""The keys of a recipe."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from align import errors
from align.forgetting.keys import ForgettingKeys
from align.recipe.launch_keys import LaunchKeys
from align.recipe.notify_keys import Notify
from align.stage.replay_keys import Replay

VERSION = 1
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelKeys(_Keys):
    """`model:` the base model of the chain."""

    base: str = Field(min_length=1, description="`lab` (shipped), a model folder, or a Hugging Face id")
    revision: str | None = Field(None, description="commit, tag or branch of a Hugging Face model")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="dtype of the weights; auto: bfloat16 if the base is frozen, float32 if it is trained"
    )
    attn_implementation: str | None = Field(None, description=f"as in transformers: {', '.join(ATTENTION)}")
    chat_template: str | None = Field(None, description="a .jinja file, or `plain`, for a base without a chat template")
    eos_token: str | None = Field(None, min_length=1, description="ends an answer, instead of the tokenizer's own")
    pad_token: str | None = Field(None, min_length=1, description="pads rows, instead of the tokenizer's own")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model; always reported")

    @field_validator("attn_implementation")
    @classmethod
    def _attention(cls, value: str | None) -> str | None:
        if value is not None and value not in ATTENTION and "/" not in value:  # a kernel of the Hub has a slash
            close = errors.nearest(value, ATTENTION)
            raise ValueError(
                f"transformers has no attention implementation {value!r}; "
                + (f"did you mean '{close}'?" if close else f"known are {', '.join(ATTENTION)}")
            )
        return value


class Recipe(_Keys):
    """A recipe. One level below `stages`, each entry is checked against its stage's own keys."""

    version: Literal[1] = Field(1, description="version of the recipe format")
    name: str = Field(description="names the run folder, runs/<name>")
    seed: int = Field(0, ge=0, lt=2**32, description="random seed; the same seed gives the same weights")
    model: ModelKeys = Field(description="the base model of the chain")
    pipeline: str | None = Field(
        None, description="a preset of `align list`, or a .yaml file; without it, `stages` defines the graph"
    )
    parameterization: dict[str, Any] = Field(
        default={"method": "full"},
        description="which weights are trained, as in `{method: qlora}`; the default for every stage",
    )
    replay: Replay | None = Field(None, description="old rows mixed into the training data, so that less is forgotten")
    forgetting: ForgettingKeys = Field(
        default=ForgettingKeys(), description="what is measured after every stage, and how much of it may be lost"
    )
    launch: LaunchKeys = Field(
        default=LaunchKeys(), description="how many processes train, and how they share the model"
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        default=[], description="trackers that also receive the metrics, as in `[tensorboard]`"
    )
    notify: Notify | None = Field(
        None, description="a command or a webhook that is told of the end, a gate, a failure and an interrupt"
    )
    stages: dict[str, Any] = Field(
        min_length=1, description="the stages, each under a name of your choice and with its data"
    )

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError(f"{value!r} is not a valid folder name; choose letters, digits, '.', '_' and '-'")
        return value
