"""A base that is saved quantised: which recipes can use it as it is, and what they say of it. No torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from align.errors import AlignError, Exit, shown
from align.libraries import peft as peft_source
from align.parameterization.method import files
from align.parameterization.methods.peft import learns_prompts
from align.parameterization.methods.qlora import QuantizationKeys
from align.policy.base import Base, quantization
from align.recipe.document import Loc
from align.recipe.plan import Loaded, StagePlan

BITSANDBYTES = "bitsandbytes"
_UNPACKED = "give the original model"


def method(saved: dict[str, Any]) -> str:
    """By what it is quantised: `bitsandbytes`, `gptq`, ... ; old files of bitsandbytes name no method."""
    own = bool(saved.get("load_in_4bit") or saved.get("load_in_8bit"))
    return BITSANDBYTES if own else str(saved.get("quant_method") or "a method that config.json does not name")


def faults(loaded: Loaded, base: Base) -> Iterator[AlignError]:
    """What cannot be done with a base that is saved quantised, and what a recipe says of it that is not so."""
    saved = quantization(base.config)
    if saved is None:
        return
    at: Loc = ("model", "base")
    if method(saved) != BITSANDBYTES:
        what = f"the model '{base.name}' is saved quantised ({method(saved)}), but only bitsandbytes is supported"
        yield loaded.document.fault(at, what, f"{_UNPACKED}; `method: qlora` quantises it to 4 or 8 bits")
        return
    if importlib.util.find_spec(BITSANDBYTES) is None:
        what = f"the model '{base.name}' is saved quantised, but the package '{BITSANDBYTES}' is not installed"
        fault = loaded.document.fault(at, what, f"pip install {BITSANDBYTES}")
        fault.exit = Exit.MACHINE
        yield fault
    stage = next((plan.id for plan in loaded.stages if plan.trains_base), None)
    if stage is not None:
        what = f"the model '{base.name}' is saved quantised, but the stage '{stage}' trains its weights"
        remedy = f"{_UNPACKED}, or a parameterization that freezes the base"
        yield loaded.document.fault(at, what, remedy)
    for plan in loaded.stages:
        yield from _of_stage(loaded, plan, base.name, saved)


def adopt(loaded: Loaded, base: Base) -> None:
    """Let the parameterizations say how the base is saved where the recipe leaves it open."""
    saved = quantization(base.config)
    if saved is None or method(saved) != BITSANDBYTES:
        return
    true = _settings(saved)
    for plan in loaded.stages:
        keys = _keys(plan)
        for name in true.keys() - (keys.model_fields_set if keys is not None else true.keys()):
            setattr(keys, name, true[name])


def _of_stage(loaded: Loaded, plan: StagePlan, name: str, saved: dict[str, Any]) -> Iterator[AlignError]:
    own = plan.keys.parameterization is not None
    at: Loc = ("stages", plan.id, "parameterization") if own else ("parameterization",)
    keys, called = _keys(plan), plan.method_keys.method
    if keys is not None:
        for key, true in _settings(saved).items():
            given = getattr(keys, key)
            if key in keys.model_fields_set and given != true:
                what = f"'quantization.{key}' is {shown(given)}, but the model '{name}' is saved with {shown(true)}"
                remedy = f"write `{key}: {_yaml(true)}`, leave it out, or {_UNPACKED}"
                yield loaded.document.fault((*at, "quantization", key), what, remedy)
    elif not plan.trains_base and called not in files() and not _stands_on_quantised(called):
        what = f"the model '{name}' is saved quantised, but PEFT's '{called}' does not support a quantised base"
        yield loaded.document.fault((*at, "method"), what, f"choose lora or ia3, or {_UNPACKED}")


def _stands_on_quantised(called: str) -> bool:
    return learns_prompts(called) or peft_source.has_quantized(called)


def _keys(plan: StagePlan) -> QuantizationKeys | None:
    found = getattr(plan.method_keys, "quantization", None)
    return found if isinstance(found, QuantizationKeys) else None


def _settings(saved: dict[str, Any]) -> dict[str, Any]:
    """The keys of `quantization:` that say how weights are stored; the compute dtype is free."""
    if not saved.get("load_in_4bit"):
        return {"bits": 8}
    names = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}  # by default, in bitsandbytes
    return {"bits": 4, **{name: saved.get(name, default) for name, default in names.items()}}


def _yaml(value: Any) -> str:
    return shown(value).strip("'")
