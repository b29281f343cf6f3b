"""Which weights a stage trains: one file a method, found by its name, all with the same names inside.

A method's file holds
    DESCRIPTION: str                          one line for `align list`
    TRAINS_BASE: bool                         whether base weights change (full) or stay frozen (adapters)
    class Keys(ParameterizationKeys)          its recipe keys
    advise(keys) -> list[str]                 warnings about questionable values
    quantization(keys) -> dict | None         arguments of transformers' BitsAndBytesConfig for the base
    apply(model, keys, name) -> model         make the declared weights trainable, all others frozen
Only `apply` may import torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import BaseModel, ConfigDict

from align import shelf
from align.errors import AlignError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ParameterizationKeys(BaseModel):
    """The key that every parameterization has."""

    model_config = ConfigDict(extra="forbid")
    method: str


class Method(Protocol):
    """What a method's file offers."""

    DESCRIPTION: str
    TRAINS_BASE: bool
    Keys: type[ParameterizationKeys]

    def advise(self, keys: Any) -> list[str]: ...

    def quantization(self, keys: Any) -> dict[str, Any] | None: ...

    def apply(self, model: PreTrainedModel, keys: Any, name: str) -> PreTrainedModel: ...


def names() -> list[str]:
    """The methods there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load(name: str) -> Method:
    """The file of a method.

    Raises:
        AlignError: there is no such method.
    """
    if name not in names():
        raise AlignError(f"there is no parameterization '{name}'", shelf.did_you_mean(name, names()))
    return cast(Method, importlib.import_module(f"align.parameterization.{name}"))
