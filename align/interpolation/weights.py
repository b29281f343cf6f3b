"""A model set to a share of a stage's update, in place, and back: from the policy that came in to what was trained.

Weights, modules that are trained whole, and adapters that multiply (IA3) lie on the line between their values before
and after. A new adapter whose update is s B A has as a share of it s (share B) A. One that was trained further has
(1 - share) s B0 A0 + share s B1 A1, which is an adapter of both ranks with B = [(1 - share) B0, share B1] and
A = [A0; A1]. All in float32, and rounded once to the dtype in which the weights are held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from align.interpolation import joined, shares
from align.parameterization.traits import Linear
from align.policy.stack import TRAINED
from align.run_folder.interpolation import Shape

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """A parameter that is set by its share: `at` gives its value in float32 or as it was."""

    name: str
    parameter: nn.Parameter
    at: Callable[[float], torch.Tensor]


class Update:
    """What a stage changed in a model, any share of which the model can be set to. Begins at the whole of it.

    Args:
        model: as the stage's training began: the policy that came in, with the stage's weights trainable.
        linear: of its method.
        further: whether its adapter was trained further, rather than made by it.
        trained: the values of all trainable parameters after training, by their names in `model`.
    """

    def __init__(self, model: Any, linear: Linear, *, further: bool, trained: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self.layers = shares.depths(name for name, _ in model.named_parameters())
        before = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if before.keys() != trained.keys():
            raise ValueError("the files of the stage hold other weights than those that it trains")
        self.pairs = joined.pairs(model, trained) if further and linear.further == "joined" else []
        paired = {name for pair in self.pairs for name in pair.names}
        own = _of_adapters(model)
        self.parts = [
            Part(name, parameter, _line(name, parameter.data, trained[name], linear, own, further))
            for name, parameter in before.items()
            if name not in paired
        ]
        self.settings = joined.Settings(model.peft_config[TRAINED]) if self.pairs else None
        self.set(1.0, "flat")

    @torch.no_grad()
    def set(self, share: float, shape: Shape) -> None:
        """Set the model to a share: at 1 it is the trained policy, at 0 the one that came in, bit for bit."""
        for part in self.parts:
            part.parameter.data = part.at(shares.of(part.name, share, shape, self.layers))
        whole = share in (0.0, 1.0)
        for pair in self.pairs:
            pair.set(shares.of(pair.names[0], share, shape, self.layers), whole=whole)
        if self.settings is not None:
            self.settings.set(joined=not whole)

    @property
    def rank(self) -> int | None:
        """The largest rank of a module of the adapter as the model has it now; None where it has no ranks."""
        found = [
            _width(layer, TRAINED)
            for layer in self.model.modules()
            if isinstance(layer, BaseTunerLayer) and TRAINED in (*getattr(layer, "lora_A", ()), *_embeddings(layer))
        ]
        return max(found, default=None)


def _line(
    name: str, before: torch.Tensor, after: torch.Tensor, linear: Linear, own: set[str], further: bool
) -> Callable[[float], torch.Tensor]:
    """How one parameter depends on its share."""
    parts = set(name.split("."))
    if linear.factors and parts & own:
        if not parts & set(linear.factors):
            return lambda share: after
        if not further:
            return lambda share: after if share == 1 else (after.float() * share).to(after.dtype)
    return lambda share: torch.lerp(before.float(), after.float(), share).to(after.dtype)


def _of_adapters(model: nn.Module) -> set[str]:
    """The names that adapters have for their own parameters."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return {kind for layer in layers for kind in layer.adapter_layer_names}


def _embeddings(layer: Any) -> tuple[str, ...]:
    return tuple(getattr(layer, "lora_embedding_A", ()))


def _width(layer: Any, name: str) -> int:
    """The rank of an adapter in a layer; of one on experts that of each."""
    if name in _embeddings(layer):
        return int(layer.lora_embedding_A[name].shape[0])
    a: Any = layer.lora_A[name]
    matrix: Any = a.weight if isinstance(a, nn.Module) else a  # AdaLoRA's is the parameter itself
    return int(matrix.shape[0]) // int(getattr(layer, "num_experts", 1))


# What a stage trained, from its files ----------------------------------------------------------------------------


def of_adapter(model: PeftModel, folder: Path) -> Weights:
    """The trained values of a model's adapter, and of what else is saved with it, by their names in the model.

    The model's own are left as they are. The adapter is float32 from here on, as PEFT makes those that it loads.
    """
    own = _of_adapters(model)
    for name, parameter in _trainable(model).items():
        if own & set(name.split(".")):
            parameter.data = parameter.data.float()
    before = {name: parameter.data.clone() for name, parameter in _trainable(model).items()}
    config = model.peft_config[TRAINED]
    if config.peft_type == PeftType.ADALORA:  # which has pruned some ranks
        config.rank_pattern = PeftConfig.from_pretrained(str(folder)).rank_pattern
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), adapter_name=TRAINED)
    after = {name: parameter.data.clone() for name, parameter in _trainable(model).items()}
    for name, parameter in _trainable(model).items():
        if name in before:
            parameter.data = before[name]
    return after


def of_weights(model: nn.Module, whole: nn.Module) -> Weights:
    """The trained values of a model's own weights.

    Args:
        whole: the model that the stage wrote, without adapters.
    """
    stored = {name: parameter.data for name, parameter in whole.named_parameters()}
    return {name: stored[name.replace(".base_layer.", ".")] for name in _trainable(model)}


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
