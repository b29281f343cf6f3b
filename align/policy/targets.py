"""Which modules an adapter goes on: the linear layers of attention and MLP, found from the model itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.spectrum.choose import is_router

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Targets:
    """What PEFT is told.

    Attributes:
        modules: names of linear layers, as short as they can be: `q_proj` where it means only such layers.
        parameters: names of 3-D expert tensors, (experts, out, in), as `mlp.experts.down_proj`; LoRA alone takes them.
    """

    modules: list[str]
    parameters: list[str]


def find(model: nn.Module) -> Targets:
    """The linear layers and expert tensors inside the model's transformer layers.

    Layers that earlier adapters wrap count as what they wrap. Left out are the head, embeddings, and what chooses
    rather than projects: routers, and gates of a single output.

    Args:
        model: a base, or a base with adapters in it.
    """
    linear, others, experts = list[str](), list[str](), list[str]()
    for name, module in own_modules(model):
        inside = any(part.isdigit() for part in name.split("."))
        if inside and _is_projection(module) and not is_router(name):
            linear.append(name)
        else:
            others.append(name)
        own = module.named_parameters(recurse=False) if inside and not is_router(name) else ()
        experts += [f"{name}.{key}" for key, parameter in own if parameter.ndim == 3]
    return Targets(shortest(linear, others), sorted({_without_layer(name) for name in experts}))


def trained(model: nn.Module) -> list[str]:
    """The modules that hold trainable weights, their own or an adapter's, by the names they have without adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = set[str]()
    layers = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = next((layer for layer in layers if name.startswith(f"{layer}.")), name.rpartition(".")[0])
            found.add(owner.removeprefix("base_model.model.").replace(".base_layer", "").removesuffix(".adapter"))
    return sorted(found)


def norms(model: nn.Module) -> list[str]:
    """The normalisations, inside the transformer layers and after them."""
    wanted = [name for name, module in own_modules(model) if "norm" in type(module).__name__.lower()]
    return shortest(wanted, [name for name, _ in own_modules(model) if name not in set(wanted)])


def narrowing(model: nn.Module) -> list[str]:
    """The linear layers of an MLP that lead back to the hidden state: those with fewer outputs than inputs."""
    from transformers.pytorch_utils import Conv1D

    wanted = []
    for name, module in own_modules(model):
        if _is_projection(module) and any(part in name.lower() for part in ("mlp", "feed_forward", "fc", "dense")):
            inputs, outputs = ("nx", "nf") if isinstance(module, Conv1D) else ("in_features", "out_features")
            wanted += [name] if getattr(module, inputs) > getattr(module, outputs) else []
    return shortest(wanted, [name for name, _ in own_modules(model) if name not in set(wanted)])


def shortest(wanted: Iterable[str], others: Iterable[str]) -> list[str]:
    """Names for PEFT, which takes a name for every module that ends in it.

    The last part of each wanted name stands for all of that ending, unless another module ends so as well.
    """
    wanted = list(wanted)
    taken = {name.rpartition(".")[2] for name in others}
    return sorted({last if (last := name.rpartition(".")[2]) not in taken else name for name in wanted})


def own_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's modules by the names they have without adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: list[tuple[str, nn.Module]] = []

    def walk(module: Any, name: str) -> None:
        while isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer"):
            module = module.base_layer
        if isinstance(module, BaseTunerLayer):
            return  # an adapter beside the model's own modules
        found.append((name, module))
        for key, child in module.named_children():
            walk(child, f"{name}.{key}" if name else key)

    walk(model, "")
    return found


def _is_projection(module: nn.Module) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):  # bitsandbytes' 4-bit and 8-bit layers too
        return bool(module.out_features > 1)
    return isinstance(module, Conv1D)


def _without_layer(name: str) -> str:
    """`model.layers.3.mlp.experts.down_proj` as `mlp.experts.down_proj`."""
    parts = name.split(".")
    last = max(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[last + 1 :])
