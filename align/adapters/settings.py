"""What an adapter's settings say before it is put on a base: checked, and whether it adds up with others. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from align.errors import AlignError, Faults
from align.parameterization import method as methods
from align.parameterization.method import Method
from align.parameterization.traits import ParameterizationKeys
from align.recipe import document, validation

STARTS = ("gaussian", "eva", "orthogonal", "mica")  # what LoRA may begin with by name, and leave the base as it is


def checked(method: str, keys: Mapping[str, Any], bits: int | None) -> tuple[Method, ParameterizationKeys]:
    """The file of a method and its keys, for an adapter on a base that is in memory.

    Args:
        keys: as in a recipe, without `method`.
        bits: 4 or 8 where the base is quantised.

    Raises:
        AlignError, Faults: the method is unknown or trains the base, or a key is wrong or would change the base.
    """
    own = methods.load(method)
    if keys.get("quantization") is not None:
        raise AlignError("the base is in memory already", "leave `quantization` out, and load the base quantised")
    if method == "qlora" and bits is None:
        raise AlignError("qlora needs a base in 4 or 8 bits", "load the base quantised, or use lora")
    if bits and "quantization" in own.Keys.model_fields and (method != "spectrum" or keys.get("lora") is not None):
        keys = {**keys, "quantization": {"bits": bits}}
    try:
        settings = validation.validate(document.parse(f"method: {method}", ""), own.Keys, {"method": method, **keys})
    except Faults as many:
        raise Faults([AlignError(fault.what, fault.remedy) for fault in many.faults]) from None
    except AlignError as one:
        raise AlignError(one.what, one.remedy) from None
    if own.traits(settings).trains_base:
        remedy = "give spectrum `lora={}`" if method == "spectrum" else "choose another method"
        raise AlignError(f"{method} trains the base's own weights and is not an adapter", remedy)
    lora = getattr(settings, "lora", None)
    refuse_changes_of_base(lora.model_dump() if lora else getattr(settings, "peft", {}))
    return own, settings


def refuse_changes_of_base(settings: Mapping[str, Any]) -> None:
    """What changes the base's own weights cannot be switched off.

    Args:
        settings: of a method, or of a saved adapter.

    Raises:
        AlignError: these do.
    """
    bias, start = settings.get("bias", "none"), settings.get("init_lora_weights", True)
    if isinstance(bias, str) and bias != "none":
        raise AlignError(
            f"`bias: {bias}` trains biases of the base itself, which cannot be switched off", "leave it out"
        )
    if isinstance(start, str) and start not in STARTS:
        what = f"`init_lora_weights: {start}` moves weights of the base into the adapter, and changes the base"
        raise AlignError(what, f"choose one of: true, false, {', '.join(STARTS)}")


def no_factors(method: str, *, variant: bool, whole: bool, experts: bool, embeddings: bool, bias: bool) -> str | None:
    """Why the update of an adapter is not s B A on linear layers, as a half-sentence; None where it is.

    Args:
        variant: it is DoRA or another variant.
        whole: it trains modules or rows of them whole.
        experts: it is on expert tensors.
        embeddings: it is on an embedding.
        bias: its B has a bias.
    """
    if method != "lora":
        return f"the updates of {method} are not products B A that can be added up"
    if variant:
        return "DoRA and other variants of LoRA are not linear in B A"
    if whole:
        return "it trains full modules"
    if experts:
        return "it is on expert tensors"
    if embeddings:
        return "it is on embeddings"
    return "its B has a bias" if bias else None


def check_combination(weights: Sequence[float], rank: int | None) -> None:
    """Raises AlignError where a combination has no weights, one is not finite, or its rank is below 1."""
    if not weights or not all(math.isfinite(weight) for weight in weights):
        raise AlignError("the weights of a combination must be finite numbers", "give one for each adapter")
    if rank is not None and rank < 1:
        raise AlignError(f"the rank of a combination must be at least 1, not {rank}", "give a larger one")
