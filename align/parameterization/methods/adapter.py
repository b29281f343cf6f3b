"""Bottleneck adapters behind the blocks of a frozen base (Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2020,
arXiv 2005.00052): h + up(f(down(h))), align's own method of PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from align.parameterization.methods.lora import Layers, Names
from align.parameterization.methods.qlora import QuantizationKeys
from align.parameterization.traits import Linear, ParameterizationKeys, Traits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DESCRIPTION = "bottleneck adapters (Houlsby, Pfeiffer) on a frozen base"


class AdapterKeys(BaseModel):
    """`adapter:`"""

    model_config = ConfigDict(extra="forbid")
    r: int = Field(64, ge=1, le=4096, description="width of the bottleneck, 64-256 is usual")
    non_linearity: Literal["gelu", "relu", "silu", "tanh"] = Field("gelu", description="between the two projections")
    placement: Literal["pfeiffer", "houlsby"] = Field(
        "pfeiffer", description="pfeiffer: one per layer, after the MLP; houlsby: two, one of them after the attention"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's inputs that are dropped in training")
    target_modules: Literal["auto"] | Names = Field(
        "auto", description="the blocks that get an adapter after them; auto: chosen by `placement`"
    )
    layers_to_transform: Layers | int | None = Field(None, description="only these layers get an adapter")


class Keys(ParameterizationKeys):
    """`{method: adapter, adapter: {r: 64, placement: pfeiffer, ...}}`"""

    method: Literal["adapter"] = "adapter"
    adapter: AdapterKeys = Field(AdapterKeys(), description="the adapter")
    quantization: QuantizationKeys | None = Field(None, description="quantise the frozen base to 4 or 8 bits")


def traits(keys: Keys) -> Traits:
    """A non-linear function, which is none of the base's weights."""
    linear = Linear(("bottleneck_up",), further=None)  # in what is added to a block's output
    return Traits(merges=False, adjoins=True, any_module=True, imports="align.bottleneck", linear=linear)


def advise(keys: Keys) -> list[str]:
    """Nothing that its keys could get wrong."""
    return []


def quantization(keys: Keys) -> dict[str, Any] | None:
    """As asked for; in its own precision otherwise."""
    return keys.quantization.arguments() if keys.quantization else None


def apply(model: Any, keys: Keys, name: str, folder: Path | None = None) -> PreTrainedModel:
    """Add a trainable adapter called `name`; the weights of the base are frozen."""
    from align.bottleneck.config import BottleneckConfig
    from align.policy import stack

    settings = keys.adapter.model_dump()
    if settings["target_modules"] == "auto":
        settings["target_modules"] = None
    return stack.add(model, BottleneckConfig(task_type="CAUSAL_LM", **settings), name)
