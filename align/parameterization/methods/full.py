"""Every weight of the model is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.parameterization.traits import Linear, ParameterizationKeys, Traits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DESCRIPTION = "all weights"


class Keys(ParameterizationKeys):
    """`{method: full}`"""

    method: Literal["full"] = "full"


def traits(keys: Keys) -> Traits:
    """Base weights are what it trains."""
    return Traits(trains_base=True, continues=False, tops=False, linear=Linear())


def advise(keys: Keys) -> list[str]:
    """Nothing that its keys could get wrong."""
    return []


def quantization(keys: Keys) -> dict[str, Any] | None:
    """Weights that are trained are not quantised."""
    return None


def apply(model: Any, keys: Keys, name: str, folder: Path | None = None) -> PreTrainedModel:
    """All parameters trainable."""
    model.requires_grad_(True)
    return model
