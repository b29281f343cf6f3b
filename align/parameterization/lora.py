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
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's inputs that are dropped in training")
    target_modules: Literal["auto"] | list[str] = Field("auto", description="auto: every linear layer but the head")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases are trained as well")
    use_dora: bool = Field(False, description="train magnitude and direction apart (DoRA); slower")
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r), for high ranks")
    init_lora_weights: bool | str = Field(True, description="true: no change at first; or as in PEFT: gaussian, pissa")
    modules_to_save: list[str] | None = Field(None, description="modules that are trained whole and saved beside it")
    exclude_modules: list[str] | str | None = Field(None, description="modules that get no adapter")
    layers_to_transform: list[int] | int | None = Field(None, description="only these layers get an adapter")
    rank_pattern: dict[str, int] = Field({}, description="another r for modules by name")
    alpha_pattern: dict[str, int] = Field({}, description="another alpha for modules by name")


class Keys(ParameterizationKeys):
    """`{method: lora, lora: {r: 16, alpha: 32, ...}}`"""

    method: Literal["lora"] = "lora"
    lora: LoraKeys = Field(LoraKeys(), description="the adapter")


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
