"""Every weight of the model is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from align.parameterization import ParameterizationKeys

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DESCRIPTION = "all weights"
TRAINS_BASE = True


class Keys(ParameterizationKeys):
    """`{method: full}`"""

    method: Literal["full"] = "full"


def advise(keys: Keys) -> list[str]:
    """Nothing that its keys could get wrong."""
    return []


def quantization(keys: Keys) -> dict[str, Any] | None:
    """Weights that are trained are not quantised."""
    return None


def apply(model: PreTrainedModel, keys: Keys, name: str) -> PreTrainedModel:
    """All parameters trainable."""
    model.requires_grad_(True)
    return model
