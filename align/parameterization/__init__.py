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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import BaseModel, ConfigDict

from align import errors
from align.errors import AlignError
from align.libraries import peft as peft_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OTHERS = "peft"  # the file that serves all methods without one


class ParameterizationKeys(BaseModel):
    """The key that every parameterization has."""

    model_config = ConfigDict(extra="forbid")
    method: str


@dataclass(frozen=True)
class Traits:
    """What a chain of stages has to know of a parameterization; see align/chain.py.

    Attributes:
        trains_base: base weights change, rather than stay frozen under an adapter.
        merges: its adapter can become part of base weights.
        continues: a later stage of the same settings trains its adapter further.
        stacks: its adapter can stay, frozen and active, under what a later stage trains.
        tops: its adapter can be trained on top of another.
        repeats: also on top of one of the same method with other settings.
        inside: it acts in the model's layers, so that a reward model's head, a critic and a reference can be beside it.
        switches: all of it can be switched off; not so where it trains biases of the base itself.
    """

    trains_base: bool = False
    merges: bool = True
    continues: bool = True
    stacks: bool = True
    tops: bool = True
    repeats: bool = True
    inside: bool = True
    switches: bool = True


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
            raise AlignError(f"there is no parameterization '{name}'", errors.did_you_mean(name, names()))
        name = OTHERS
    return cast(Method, importlib.import_module(f"align.parameterization.{name}"))
