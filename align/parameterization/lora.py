"""Low-rank adapters on a frozen base (Hu et al. 2021, arXiv 2106.09685): W + alpha/r * B A, by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from align.parameterization import ParameterizationKeys

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DESCRIPTION = "low-rank adapters on a frozen base"
TRAINS_BASE = False


class LoraKeys(BaseModel):
    """`lora:`, by PEFT's names; `alpha` and `dropout` are its `lora_alpha` and `lora_dropout`."""

    model_config = ConfigDict(extra="forbid")
    r: int = Field(16, ge=1, le=256, description="rank: 4-8 simple tasks, 16-32 medium, 64-128 complex")
    alpha: int = Field(32, ge=1, description="scale of the update, alpha / r; 2 r is usual")
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["auto"] | list[str] = Field("auto", description="auto: every linear layer but the head")
    bias: Literal["none", "all", "lora_only"] = "none"
    use_dora: bool = False
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, int] = {}


class Keys(ParameterizationKeys):
    """`{method: lora, lora: {r: 16, alpha: 32, ...}}`"""

    method: Literal["lora"] = "lora"
    lora: LoraKeys = LoraKeys()


def advise(keys: Keys) -> list[str]:
    """Warn about a scale that weakens the update."""
    lora = keys.lora
    if lora.alpha < lora.r:
        return [
            f"lora.alpha {lora.alpha} is below lora.r {lora.r}, which scales the update down; alpha = {2 * lora.r} "
            "is usual"
        ]
    return []


def quantization(keys: Keys) -> dict[str, Any] | None:
    """The base stays in its own precision."""
    return None


def apply(model: PreTrainedModel, keys: Keys, name: str) -> PreTrainedModel:
    """Add a trainable adapter called `name`; the weights of the base are frozen.

    A model that is a PeftModel already gets the adapter on top of those it has.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    settings = keys.lora.model_dump()
    config = LoraConfig(
        task_type="CAUSAL_LM",
        lora_alpha=settings.pop("alpha"),
        lora_dropout=settings.pop("dropout"),
        target_modules="all-linear" if settings["target_modules"] == "auto" else settings["target_modules"],
        **{key: value for key, value in settings.items() if key != "target_modules"},
    )
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        return model
    # float32 adapters, also over a 4-bit base: small updates would round away in bfloat16
    return get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=True)
