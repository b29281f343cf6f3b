"""How far the weights of a policy are from the base's, ||W' - W|| / ||W|| in the Frobenius norm, one matrix at a time.

An update s B A of LoRA is never formed: ||B A||^2 = tr((B'B)(AA')), where stacked adapters are one product of their
joined factors, and over trained weights with a difference D also 2 tr(B' D A').
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import safe_open
from torch import nn

from align.forgetting.distances import Drift, moved
from align.policy import switchboard
from align.policy.unwrapped import unwrapped

AT_A_TIME = 2**20  # weights whose squares are added up in float32

Factors = list[tuple[torch.Tensor, torch.Tensor]]  # (out, r) and (r, in), whose products add up to an update


class NoUpdateError(Exception):
    """Why the update of an adapter's layer cannot be told, as a half-sentence."""


@dataclass(frozen=True)
class Place:
    """A module of the base with what acts on it.

    Attributes:
        around: the layers of adapters, from the outermost.
        now: what a stage trained in its stead, whole; else the module itself.
    """

    name: str
    module: nn.Module
    around: list[Any] = field(default_factory=list)
    now: nn.Module | None = None


@torch.no_grad()
def drift(model: Any, base: Path | None, note: str = "") -> Drift:
    """What changed in all, by layer and by module.

    Args:
        model: the policy, its adapters acting.
        base: the folder of the base's files, where base weights were trained; None where only adapters change it.
        note: what else is in the figures.
    """
    files = _Files(base) if base else None
    sums: dict[str, list[float]] = {}
    untold, seen = defaultdict[str, list[str]](list), set[int]()
    for place in _places(unwrapped(model), untold):
        for key, parameter in place.module.named_parameters(recurse=False):
            if id(parameter) in seen:  # a head that shares the embedding's weights
                continue
            seen.add(id(parameter))
            try:
                update, weight = _norms(place, key, parameter, files)
            except NoUpdateError as error:
                untold[str(error)].append(place.name)
                continue
            whole = sums.setdefault(place.name, [0.0, 0.0])
            whole[0], whole[1] = whole[0] + update, whole[1] + weight
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        untold["a learnt prompt changes no weight of the base"] = []
    return _summed(sums, untold, note)


def _summed(sums: dict[str, list[float]], untold: dict[str, list[str]], note: str) -> Drift:
    reasons = [f"{why} ({_modules(len(names))})" if names else why for why, names in untold.items()]
    why = "; ".join(reasons) or None
    modules = [moved(name, *both) for name, both in sums.items() if both[0] > 0]
    if why and not modules:
        return Drift(note=note, undefined=why)
    layers: dict[str, list[float]] = {}
    for name, both in sums.items():
        layer = layers.setdefault(layer_of(name), [0.0, 0.0])
        layer[0], layer[1] = layer[0] + both[0], layer[1] + both[1]
    ordered = sorted(layers, key=lambda name: not re.search(r"\.\d+$", name))  # stable: as in the model
    return Drift(
        all=moved("all weights", *(sum(both[i] for both in sums.values()) for i in (0, 1))),
        layers=tuple(moved(name, *layers[name]) for name in ordered),
        modules=tuple(sorted(modules, key=lambda one: -(one.relative or 0.0))),
        note=note,
        undefined=why,
    )


def _modules(count: int) -> str:
    return "1 module" if count == 1 else f"{count} modules"


def layer_of(module: str) -> str:
    """`model.layers.3` for what lies inside that layer; for what lies outside all, its own name."""
    found = re.match(r"(.*?\.\d+)(\.|$)", module)
    return found[1] if found else module


def _places(base: nn.Module, untold: dict[str, list[str]]) -> Iterator[Place]:
    """The modules of a base by the names they have without adapters."""

    def walk(module: Any, name: str) -> Iterator[Place]:
        around = []
        while isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer"):
            around.append(module)
            module = module.base_layer
        if isinstance(module, BaseTunerLayer):  # an adapter beside the model's own modules
            untold["a bottleneck adapter changes no weight of the base"].append(name)
            return
        if isinstance(module, AuxiliaryTrainingWrapper):
            chosen = [] if module.disable_adapters else list(module.active_adapters)
            saved = getattr(module, "modules_to_save", {})
            yield Place(name, module.original_module, [], saved[chosen[-1]] if chosen and chosen[-1] in saved else None)
            return
        yield Place(name, module, around)
        for key, child in module.named_children():
            yield from walk(child, f"{name}.{key}" if name else key)

    yield from walk(base, "")


def _norms(place: Place, key: str, parameter: nn.Parameter, files: _Files | None) -> tuple[float, float]:
    """||W' - W||^2 and ||W||^2 of one parameter.

    Raises:
        NoUpdateError: the update cannot be told.
    """
    held = _unpacked(parameter)
    before = files.tensor(f"{place.name}.{key}", parameter, held) if files else held
    weight = _squares(before)
    around = [layer for layer in place.around if getattr(layer, "parameter_name", "weight") == key]
    acting = [(layer, name) for layer in around for name in switchboard.acting(layer)]
    if place.now is not None:
        return _squares(_unpacked(getattr(place.now, key)) - before), weight
    if not acting:
        return (_squares(held - before) if files else 0.0), weight
    pairs = [_factors(layer, name) for layer, name in acting]
    told = [pair for pair in pairs if pair is not None]
    if len(told) == len(pairs):
        return _of_factors(told, held - before if files else None), weight
    return _squares(_merged(place.module, around, key, parameter) - before), weight


def _of_factors(pairs: Factors, trained: torch.Tensor | None) -> float:
    """||D + sum_i B_i A_i||^2, of which no product is formed."""
    b = torch.cat([one for one, _ in pairs], 1).double()
    a = torch.cat([other for _, other in pairs]).double()
    found = float(((b.T @ b) * (a @ a.T)).sum())
    if trained is None:
        return found
    return found + _squares(trained) + 2 * float((b * (trained @ a.T.to(trained.dtype)).double()).sum())


def _factors(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """s B (out, r) and A (r, in) of a plain LoRA or AdaLoRA, turned as the weight lies; None of any other adapter."""
    if name in getattr(layer, "lora_variant", {}) or hasattr(layer, "parameter_name"):
        return None
    if name in getattr(layer, "lora_embedding_A", {}):
        return layer.scaling[name] * layer.lora_embedding_A[name].T, layer.lora_embedding_B[name].T
    if name not in getattr(layer, "lora_A", {}):
        return None
    if hasattr(layer, "lora_E"):  # AdaLoRA
        a, b = layer.lora_A[name] * layer.lora_E[name], layer.lora_B[name] / (layer.ranknum[name] + 1e-5)
    else:
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    if a.ndim != 2:  # a convolution
        return None
    b = layer.scaling[name] * b
    return (a.T, b.T) if layer.fan_in_fan_out else (b, a)


def _merged(module: nn.Module, around: Sequence[Any], key: str, parameter: nn.Parameter) -> torch.Tensor:
    """A weight with its adapters merged into it in float32; the module is left as it was.

    Raises:
        NoUpdateError: the weight is packed, or PEFT does not merge the adapter.
    """
    called = " and ".join(dict.fromkeys(_called(layer) for layer in around))
    if hasattr(parameter, "quant_state") or hasattr(parameter, "SCB"):
        raise NoUpdateError(
            f"not computed for {called} over weights in 4 or 8 bits: its update is no sum of products B A, and PEFT "
            "merges it only by rounding to those bits again"
        )
    kept = {name: own.data for name, own in module.named_parameters(recurse=False)}
    for own in module.parameters(recurse=False):
        own.data = own.data.to(torch.float32, copy=True)
    try:
        for layer in reversed(around):
            layer.merge(safe_merge=False, adapter_names=switchboard.acting(layer))
        found = getattr(around[0].get_base_layer(), key).data.clone()
    except (ValueError, NotImplementedError, AttributeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise NoUpdateError(f"not computed for {called}, which PEFT does not merge: {reason}") from error
    finally:
        for layer in around:
            if layer.merged:
                layer.unmerge()
            layer.merged_adapters = []
        for name, own in module.named_parameters(recurse=False):
            own.data = kept[name]
    assert isinstance(found, torch.Tensor)
    return found.float()


def _called(layer: Any) -> str:
    """PEFT's name of a layer's method, and DoRA by its own."""
    return "dora" if getattr(layer, "lora_variant", None) else type(layer).__module__.split(".")[-2]


def _unpacked(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter in float32, also where bitsandbytes holds it in 4 or 8 bits."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    state, scales = getattr(parameter, "quant_state", None), getattr(parameter, "SCB", None)
    if state is not None:
        parameter = dequantize_4bit(parameter.data, state)
    elif scales is not None:
        parameter = int8_vectorwise_dequant(parameter.data, scales)
    return parameter.data.float()


def _squares(tensor: torch.Tensor) -> float:
    parts = torch.split(tensor.reshape(-1), AT_A_TIME)
    return sum(float(torch.linalg.vector_norm(part)) ** 2 for part in parts)


class _Files:
    """The tensors of a base, read one by one."""

    def __init__(self, folder: Path) -> None:
        self.at: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as stored:
                self.at |= dict.fromkeys(stored.keys(), file)

    def tensor(self, name: str, parameter: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """One of them in float32, rounded as the model's own was when it was loaded, and where `like` is.

        Raises:
            NoUpdateError: the files have none of this name and shape.
        """
        if name in self.at:
            with safe_open(self.at[name], framework="pt", device=str(like.device)) as stored:
                found: torch.Tensor = stored.get_tensor(name)
            if found.shape == like.shape and found.is_floating_point():
                return (found.to(parameter.dtype) if parameter.is_floating_point() else found).float()
        raise NoUpdateError("the base's files do not hold these weights as the model has them")
