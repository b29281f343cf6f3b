"""LoRA over a base held in 4 or 8 bits by bitsandbytes (Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from align.parameterization.methods import lora as on_any_base
from align.parameterization.methods.lora import LoraKeys
from align.parameterization.traits import ParameterizationKeys, Traits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DESCRIPTION = "LoRA on a base in 4 or 8 bits"


class QuantizationKeys(BaseModel):
    """`quantization:`, by bitsandbytes' names."""

    model_config = ConfigDict(extra="forbid")
    bits: Literal[4, 8] = Field(4, description="bits per weight of the base; 8 takes twice the memory")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(
        "nf4", description="4-bit data type; nf4 suits normally distributed weights"
    )
    bnb_4bit_use_double_quant: bool = Field(
        True, description="quantise the scales too: 4.13 instead of 4.5 bits per weight"
    )
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16",
        description="dtype to which weights are dequantised for computation; `model.dtype` where that is given",
    )

    def arguments(self) -> dict[str, Any]:
        """Those of transformers' BitsAndBytesConfig; the compute dtype by its name."""
        if self.bits == 8:
            return {"load_in_8bit": True}
        return {"load_in_4bit": True, **self.model_dump(exclude={"bits"})}


class Keys(ParameterizationKeys):
    """`{method: qlora, lora: {...}, quantization: {bits: 4, ...}}`"""

    method: Literal["qlora"] = "qlora"
    lora: LoraKeys = Field(LoraKeys(), description="the adapter")
    quantization: QuantizationKeys = Field(QuantizationKeys(), description="how the base is quantised")
    adapter_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="dtype in which the adapter is trained; bfloat16 is TRL's choice, but loses small updates",
    )

    @model_serializer(mode="wrap")
    def _without_the_default(self, keys: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Runs from before the key was there keep their fingerprints."""
        return {k: v for k, v in keys(self).items() if (k, v) != ("adapter_dtype", "float32")}


def traits(keys: Keys) -> Traits:
    """As LoRA; merged onto the dequantised base."""
    return replace(keys.lora.traits(), trained_in=keys.adapter_dtype)


def advise(keys: Keys) -> list[str]:
    """As for LoRA."""
    return on_any_base.advise(on_any_base.Keys(lora=keys.lora))


def quantization(keys: Keys) -> dict[str, Any] | None:
    """How the base is held."""
    return keys.quantization.arguments()


def apply(model: Any, keys: Keys, name: str, folder: Path | None = None) -> PreTrainedModel:
    """As for LoRA: the model was loaded quantised."""
    return on_any_base.apply(model, on_any_base.Keys(lora=keys.lora), name)
