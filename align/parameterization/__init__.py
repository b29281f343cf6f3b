"""Which weights a stage trains: one file a method, found by its name, all with the same names inside.

A method's file holds
    DESCRIPTION: str                             one line for `align list`
    class Keys(ParameterizationKeys)             its recipe keys
    trains_base(keys) -> bool                    whether base weights change (full) or stay frozen (adapters)
    merges(keys) -> bool                         whether its adapter can be merged into base weights
    continues(keys) -> bool                      whether a later stage of the same settings trains its adapter further
    stacks(keys) -> bool                         whether another adapter can be trained on top of its own
    tops(keys) -> bool                           whether its adapter can be trained on top of another
    advise(keys) -> list[str]                    warnings about questionable values
    quantization(keys) -> dict | None            arguments of transformers' BitsAndBytesConfig for the base
    apply(model, keys, name, folder) -> model    make the declared weights trainable, all others frozen
Only `apply` may import torch. `peft.py` serves every method of PEFT that has no file of its own, by PEFT's name.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import BaseModel, ConfigDict

from align import peft_source, shelf
from align.errors import AlignError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OTHERS = "peft"  # the file that serves all methods without one


class ParameterizationKeys(BaseModel):
    """The key that every parameterization has."""

    model_config = ConfigDict(extra="forbid")
    method: str


class Method(Protocol):
    """What a method's file offers."""

    DESCRIPTION: str
    Keys: type[ParameterizationKeys]

    def trains_base(self, keys: Any) -> bool: ...

    def merges(self, keys: Any) -> bool: ...

    def continues(self, keys: Any) -> bool: ...

    def stacks(self, keys: Any) -> bool: ...

    def tops(self, keys: Any) -> bool: ...

    def advise(self, keys: Any) -> list[str]: ...

    def quantization(self, keys: Any) -> dict[str, Any] | None: ...

    def apply(self, model: Any, keys: Any, name: str, folder: Path | None = None) -> PreTrainedModel: ...


def names() -> list[str]:
    """The methods that have a file of their own, and PEFT's others."""
    return [*files(), *others()]


def files() -> list[str]:
    """The methods that have a file of their own."""
    found = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    return [name for name in found if name != OTHERS]


def others() -> list[str]:
    """PEFT's methods that `peft.py` serves."""
    from align.parameterization.peft import REFUSED

    return [name for name in peft_source.methods() if name not in (*files(), *REFUSED)]


def load(name: str) -> Method:
    """The file of a method.

    Raises:
        AlignError: there is no such method.
    """
    known = files()
    if name not in known:
        if name not in peft_source.methods():
            raise AlignError(f"there is no parameterization '{name}'", shelf.did_you_mean(name, names()))
        name = OTHERS
    return cast(Method, importlib.import_module(f"align.parameterization.{name}"))
