"""The recipe keys of penalties on weights, and which stages can have them. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from align.data.sources import DataSource

EWC, L2_SP, KL_COEF = "ewc", "l2_sp", "kl_coef"
LONGEST = 1024  # tokens of a row of `ewc.data` where the stage has no `max_length`
_METHODS = ("full", "spectrum", "lora", "qlora")


class Ewc(BaseModel):
    """Elastic weight consolidation: weights that old data need stay near where they were."""

    model_config = ConfigDict(extra="forbid")
    data: DataSource | list[DataSource] = Field(
        description="rows whose knowledge is to stay: a file, a folder, a Hub id, lab/general"
    )
    weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="of the penalty; on average, a weight is drawn back as by `l2_sp`"
    )
    rows: int = Field(200, ge=1, description="how many rows the Fisher information is measured on, drawn by the seed")
    fisher: Literal["empirical", "sampled"] = Field(
        "empirical", description="the gradient of the data's own answers, or of tokens sampled from the policy"
    )


def active(keys: dict[str, Any]) -> dict[str, Any]:
    """The penalties on weights that a stage has, as its keys hold them; those of no weight are none.

    Args:
        keys: of a stage, as a ticket holds them.
    """
    ewc, l2_sp = keys.get(EWC), keys.get(L2_SP)
    found = {EWC: ewc} if ewc and ewc["weight"] > 0 else {}
    return {**found, **({L2_SP: l2_sp} if l2_sp else {})}


def settings(keys: dict[str, Any]) -> dict[str, Any]:
    """What of a stage's penalties, on weights and on what it says, decides how it trains; the data of `ewc` count by
    their content."""
    found = active(keys)
    if EWC in found:
        found[EWC] = {name: value for name, value in found[EWC].items() if name not in ("data", "rows")}
    return {**found, **({KL_COEF: keys[KL_COEF]} if keys.get(KL_COEF) else {})}


def faults(stage: str, keys: dict[str, Any], gives: str, method: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Why a stage cannot have the penalties that its keys ask for: the key, what is wrong, and the way out.

    Args:
        gives: `policy` or `reward`.
        method: the keys of its parameterization.
    """
    for key in active(keys):
        if gives != "policy":
            what = f"stage '{stage}' trains a reward model, and `{key}` is for stages that train a policy"
            yield key, what, f"remove `{key}`"
            continue
        reason = _unsuited(key, method)
        if reason:
            yield key, f"stage '{stage}' cannot have `{key}`: {reason}", f"remove `{key}`, or {_way_out(method)}"


def _unsuited(key: str, method: dict[str, Any]) -> str | None:
    name = method["method"]
    if name not in _METHODS:
        return f"it acts on trained weights of the model, or on the update B A of LoRA, and {name} has neither"
    lora = method.get("lora") or {}
    if lora.get("use_dora"):
        return "it acts on the update B A of LoRA, which DoRA scales by a trained magnitude"
    if lora.get("target_parameters"):
        return "it acts on LoRA of linear layers, not of the expert tensors in `target_parameters`"
    return None


def _way_out(method: dict[str, Any]) -> str:
    lora = method.get("lora") or {}
    if lora.get("use_dora"):
        return "write `use_dora: false`"
    if lora.get("target_parameters"):
        return "leave `target_parameters` out"
    return f"choose one of {', '.join(_METHODS)}"
