"""The transformers model inside a PEFT model."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel


def unwrapped(model: Any) -> PreTrainedModel:
    """The base inside its PeftModel, with the layers of its adapters in it; any other model as it is."""
    base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return base
