"""Only the layers with most signal are trained: their weights, or LoRA on them (Spectrum, Hartford et al. 2024, arXiv
2406.06623)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from align.parameterization.methods import lora
from align.parameterization.methods.lora import Layers, LoraKeys
from align.parameterization.methods.qlora import QuantizationKeys
from align.parameterization.traits import Linear, ParameterizationKeys, Traits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from align.spectrum.choose import Choice, Record

DESCRIPTION = "the layers with the highest signal-to-noise ratio, in full or with LoRA"


class SpectrumKeys(BaseModel):
    """`spectrum:`"""

    model_config = ConfigDict(extra="forbid")
    snr_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of each type of layer that stays frozen, those with the lowest ratios; higher trains fewer",
    )
    layers_to_finetune: Literal["auto"] | Layers = Field(
        "auto",
        description="auto: chosen by `snr_threshold`; or layer numbers, to train all projections of these layers",
    )
    estimator: Literal["mp", "reference"] = Field(
        "mp", description="noise estimator: mp suits matrices of any shape; reference is that of the published program"
    )


class Keys(ParameterizationKeys):
    """`{method: spectrum, spectrum: {snr_threshold: 0.5}}`, and `lora: {...}` for adapters on the chosen layers"""

    method: Literal["spectrum"] = "spectrum"
    spectrum: SpectrumKeys = Field(SpectrumKeys(), description="which layers are trained")
    lora: LoraKeys | None = Field(None, description="put LoRA on the chosen layers instead of training their weights")
    quantization: QuantizationKeys | None = Field(
        None, description="with `lora`: quantise the frozen base to 4 or 8 bits"
    )

    @field_validator("lora")
    @classmethod
    def _modules_are_chosen(cls, value: LoraKeys | None) -> LoraKeys | None:
        if value is not None and (value.target_modules != "auto" or value.layers_to_transform is not None):
            raise ValueError("Spectrum chooses the modules: leave `target_modules` and `layers_to_transform` out")
        return value

    @field_validator("quantization")
    @classmethod
    def _not_alone(cls, value: QuantizationKeys | None, info: ValidationInfo) -> QuantizationKeys | None:
        if value is not None and info.data.get("lora") is None:
            raise ValueError(
                "weights in 4 or 8 bits cannot be trained: write `lora: {}` next to it for adapters on the chosen "
                "layers, or leave `quantization` out"
            )
        return value


def traits(keys: Keys) -> Traits:
    """Alone it trains weights; otherwise as LoRA."""
    if keys.lora is None:
        return Traits(trains_base=True, continues=False, tops=False, linear=Linear())
    return keys.lora.traits()


def advise(keys: Keys) -> list[str]:
    """As LoRA."""
    return lora.advise(lora.Keys(lora=keys.lora)) if keys.lora else []


def quantization(keys: Keys) -> dict[str, Any] | None:
    """As asked for; in its own precision otherwise."""
    return keys.quantization.arguments() if keys.quantization else None


def apply(model: Any, keys: Keys, name: str, folder: Path | None = None) -> PreTrainedModel:
    """Choose the layers of the model as it came in, and make them trainable, or put an adapter called `name` on them.

    Writes what was measured and chosen into `folder`/spectrum.json.

    Raises:
        AlignError: a layer that does not exist, or weights without a spectrum.
    """
    from align.policy import stack
    from align.run_folder import files
    from align.run_folder.stage_dir import StageDir
    from align.spectrum import table

    base = stack.bare(model)
    choice, records = _choose(base, keys.spectrum)
    if folder is not None:
        found = table.spectrum(records, keys.spectrum.estimator)
        found = found.but(chosen=tuple(choice.names), snr_threshold=keys.spectrum.snr_threshold)
        files.write_json(StageDir(folder).spectrum, found.written())
    modules = [each for each in choice.names if "[" not in each]
    experts = sorted({each.partition("[")[0] for each in choice.names if "[" in each})
    if keys.lora is not None:
        return lora.add(model, keys.lora, name, modules, experts)
    wanted = {f"{each}.weight" for each in modules} | set(experts)
    for parameter_name, parameter in base.named_parameters():
        parameter.requires_grad_(parameter_name in wanted)
    return base


def _choose(base: PreTrainedModel, keys: SpectrumKeys) -> tuple[Choice, list[Record]]:
    """The modules to train, and the scan that says so; no scan where the layers are named."""
    from align.spectrum import choose, scan

    if keys.layers_to_finetune == "auto":
        records = scan.scan_tensors(_weights(base), keys.estimator)
        return choose.by_threshold(records, keys.snr_threshold), records
    matrices = [
        matrix for name, weight in _weights(base) for matrix in choose.weight_matrices(name, tuple(weight.shape))
    ]
    return choose.by_layers(choose.in_largest_stack(matrices), keys.layers_to_finetune), []


def _weights(base: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of linear layers and experts by the names they have without adapters, dequantised one at a time."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    from align.policy import targets

    for name, module in targets.own_modules(base):
        for key, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{key}" if name else key
            state, scales = getattr(parameter, "quant_state", None), getattr(parameter, "SCB", None)
            if state is not None:
                yield full, dequantize_4bit(parameter.data, state)
            elif scales is not None:
                yield full, int8_vectorwise_dequant(parameter.data, scales)
            else:
                yield full, parameter
