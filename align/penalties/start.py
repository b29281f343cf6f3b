"""What a stage trains, with where it started: whole tensors, and the products B A of LoRA.

An adapter's own matrices are the wrong thing to keep: B and A can both change while what they do stays the same. A
penalty on them is one on the effective update s B A of the matrix that they adapt (EWC-LoRA, 2026, arXiv 2602.17559).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from align.errors import AlignError, Exit
from align.policy.stack import TRAINED

Tensors: TypeAlias = "tuple[torch.Tensor, ...]"


@dataclass(frozen=True)
class Whole:
    """A tensor that is trained as it is.

    Attributes:
        name: of the parameter in the model.
        start: a copy of it from before training.
    """

    name: str
    start: torch.Tensor

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of what is trained, in the order of `moved`."""
        return (self.name,)

    @property
    def size(self) -> int:
        """Weights that a penalty is on."""
        return self.start.numel()


@dataclass(frozen=True)
class Product:
    """The update s B A of a linear layer, (out, in), with B (out, r) and A (r, in).

    Attributes:
        layer: the name of the layer that holds the adapter.
        scaling: s.
        start: B and A from before training; None where B was 0, as in a new adapter.
    """

    layer: str
    scaling: float
    shape: tuple[int, int]
    start: tuple[torch.Tensor, torch.Tensor] | None

    @property
    def name(self) -> str:
        """Of the update."""
        return f"{self.layer}.weight"

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of B and A."""
        return f"{self.layer}.lora_B.{TRAINED}.weight", f"{self.layer}.lora_A.{TRAINED}.weight"

    @property
    def size(self) -> int:
        """Weights that a penalty is on: those of the adapted matrix."""
        return self.shape[0] * self.shape[1]


Part: TypeAlias = Whole | Product


@torch.no_grad()
def parts(model: nn.Module) -> list[Part]:
    """Everything that is trainable, as it is now: first the products, then the rest in the order of the model.

    Raises:
        AlignError: LoRA on something else than a linear layer.
    """
    found: list[Part] = list(_products(model))
    own = {name for part in found for name in part.parameters}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in own:
            found.append(Whole(name, parameter.detach().clone()))
    return found


def _products(model: nn.Module) -> Iterator[Product]:
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        holder: Any = layer
        if TRAINED in getattr(holder, "lora_embedding_A", {}):
            raise _not_linear(name)
        if TRAINED not in getattr(holder, "lora_A", {}):
            continue
        b, a = holder.lora_B[TRAINED].weight, holder.lora_A[TRAINED].weight
        if a.ndim != 2 or hasattr(holder, "parameter_name"):  # an expert tensor: of several matrices
            raise _not_linear(name)
        start = (b.detach().clone(), a.detach().clone()) if bool(b.any()) else None
        yield Product(name, float(holder.scaling[TRAINED]), (b.shape[0], a.shape[1]), start)


def _not_linear(name: str) -> AlignError:
    what = f"a penalty on weights acts on LoRA of linear layers, and '{name}' is none"
    remedy = "name the linear layers in `target_modules`, or remove `ewc` and `l2_sp`"
    return AlignError(what, remedy, exit=Exit.STAGE_FAILED)
