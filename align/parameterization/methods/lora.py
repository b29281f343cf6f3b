"""Low-rank adapters on a frozen base (Hu et al. 2021, arXiv 2106.09685): W + alpha/r * B A, by PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from align.parameterization.traits import Linear, ParameterizationKeys, Traits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Names = Annotated[list[str], Field(min_length=1)]
Layers = Annotated[list[int], Field(min_length=1)]
Rank = Annotated[int, Field(ge=1)]
FACTORS = Linear(("lora_B", "lora_embedding_B"), further="joined")
HEADS = ("lm_head", "embed_out", "output_layer")
DESCRIPTION = "low-rank adapters on a frozen base"


class LoraKeys(BaseModel):
    """`lora:`, by PEFT's names; `alpha` and `dropout` are its `lora_alpha` and `lora_dropout`."""

    model_config = ConfigDict(extra="forbid")
    r: int = Field(
        16, ge=1, le=256, description="rank: 4-8 for simple tasks, 16-32 for medium ones, 64-128 for complex ones"
    )
    alpha: int = Field(32, ge=1, description="the update is scaled by alpha / r; 2 r is usual")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's inputs that are dropped in training")
    target_modules: Literal["auto"] | Names = Field("auto", description="auto: every linear layer except the head")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases are trained as well")
    use_dora: bool = Field(False, description="train magnitude and direction separately (DoRA); slower")
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r), for high ranks")
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] = Field(
        True,
        description="true: no change at first; initialisations that change the base, such as pissa, are not supported",
    )
    modules_to_save: Names | None = Field(
        None, description="modules that are trained in full and saved with the adapter"
    )
    exclude_modules: list[str] | str | None = Field(None, description="modules that get no adapter")
    layers_to_transform: Layers | int | None = Field(None, description="only these layers get an adapter")
    rank_pattern: dict[str, Rank] = Field({}, description="a different r for some modules, by name")
    alpha_pattern: dict[str, Rank] = Field({}, description="a different alpha for some modules, by name")
    target_parameters: Names | None = Field(None, description="3-D expert tensors that get an adapter")
    lora_bias: bool = Field(False, description="give the adapter's second matrix a bias")

    def traits(self) -> Traits:
        """Of whole modules one at a time can act; a bias of the update has no place in a layer without one."""
        return Traits(
            merges=not self.lora_bias,
            stacks=not self.modules_to_save,
            switches=self.bias == "none",
            saves_modules=bool(self.modules_to_save),
            linear="DoRA divides by the norm of the sum of weight and update" if self.use_dora else FACTORS,
        )

    @field_validator("target_modules")
    @classmethod
    def _not_the_head(cls, value: Literal["auto"] | Names) -> Literal["auto"] | Names:
        head = next((name for name in value if name.rpartition(".")[2] in HEADS), None) if value != "auto" else None
        if head is not None:
            raise ValueError(
                f"TRL's trainers do not support LoRA on {head!r}: write `modules_to_save: [{head}]` to train it in full"
            )
        return value


class Keys(ParameterizationKeys):
    """`{method: lora, lora: {r: 16, alpha: 32, ...}}`"""

    method: Literal["lora"] = "lora"
    lora: LoraKeys = Field(LoraKeys(), description="the adapter")


def traits(keys: Keys) -> Traits:
    """An update that is added to each matrix; of whole modules one at a time can act."""
    return keys.lora.traits()


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


def apply(model: Any, keys: Keys, name: str, folder: Path | None = None) -> PreTrainedModel:
    """Add a trainable adapter called `name`; the weights of the base are frozen."""
    from align.policy import stack, targets

    found = targets.find(stack.bare(model))
    return add(model, keys.lora, name, found.modules, found.parameters)


def add(model: Any, keys: LoraKeys, name: str, modules: list[str], parameters: list[str]) -> PreTrainedModel:
    """Add a trainable adapter on modules and 3-D expert tensors, unless the keys name others."""
    from peft import LoraConfig

    from align.policy import stack

    settings = keys.model_dump(exclude_none=True)
    if settings["target_modules"] == "auto":
        settings["target_modules"] = modules
        if parameters:
            settings.setdefault("target_parameters", parameters)
    config = LoraConfig(
        task_type="CAUSAL_LM", lora_alpha=settings.pop("alpha"), lora_dropout=settings.pop("dropout"), **settings
    )
    return stack.add(model, config, name)
