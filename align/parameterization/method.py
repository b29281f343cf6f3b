"""Which weights a stage trains: one file a method, found by its name, all with the same names inside.

A method's file holds
    DESCRIPTION: str                             one line for `align list`
    class Keys(ParameterizationKeys)             its recipe keys
    traits(keys) -> Traits                       how a stage goes on from it, and it from another
    advise(keys) -> list[str]                    warnings about questionable values
    quantization(keys) -> dict | None            arguments of transformers' BitsAndBytesConfig for the base
    apply(model, keys, name, folder) -> model    make the declared weights trainable, all others frozen
Only `apply` may import torch. `peft.py` serves every method of PEFT that has no file of its own, by PEFT's name.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from align import errors
from align.errors import AlignError
from align.libraries import peft as peft_source
from align.parameterization.traits import ParameterizationKeys, Traits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OTHERS = "peft"  # the file that serves all methods without one


class Method(Protocol):
    """What a method's file offers."""

    DESCRIPTION: str
    Keys: type[ParameterizationKeys]

    def traits(self, keys: Any) -> Traits: ...

    def advise(self, keys: Any) -> list[str]: ...

    def quantization(self, keys: Any) -> dict[str, Any] | None: ...

    def apply(self, model: Any, keys: Any, name: str, folder: Path | None = None) -> PreTrainedModel: ...


def names() -> list[str]:
    """The methods that have a file of their own, and PEFT's others."""
    return [*files(), *others()]


def files() -> list[str]:
    """The methods that have a file of their own."""
    found = sorted(
        path.stem for path in (Path(__file__).parent / "methods").glob("*.py") if not path.stem.startswith("_")
    )
    return [name for name in found if name != OTHERS]


def others() -> list[str]:
    """PEFT's methods that `peft.py` serves."""
    from align.parameterization.methods.peft import REFUSED

    return [name for name in peft_source.methods() if name not in (*files(), *REFUSED)]


def load(name: str) -> Method:
    """The file of a method.

    Raises:
        AlignError: there is no such method.
    """
    known = files()
    if name not in known:
        if name not in peft_source.methods():
            raise AlignError(f"there is no parameterization '{name}'", errors.did_you_mean(name, names()))
        name = OTHERS
    return cast(Method, importlib.import_module(f"align.parameterization.methods.{name}"))
