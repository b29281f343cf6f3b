"""The adapters that stand behind one block of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional

from align.bottleneck.config import BottleneckConfig

ATTRIBUTE = "adapter"  # the name under which a block holds its BottleneckLayer
NO_MERGE = (
    "a bottleneck adapter is non-linear and cannot be merged into the weights of its base: "
    "keep it as an adapter, or call unload() to remove it"
)


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """Adapters by name behind a block: h <- h + up(f(down(dropout(h)))), for each active one in the order given.

    It is a child of its block and called by a forward hook; other PEFT methods put their layers around a module. This
    way no name in the base changes: LoRA finds the same modules with and without it, and the files of either load in
    any order. PEFT also leaves out what lies inside another method's layer, which here is only the adapter itself.

    Args:
        width: d, the size of the last dimension of the block's hidden state.
        device: where new adapters are made.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("dropout", "non_linearity")
    set_adapter: Callable[..., None]  # these two are PEFT's, which carries no types
    set_requires_grad: Callable[..., None]

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.width, self.device = width, device
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.dropout = nn.ModuleDict()
        self.non_linearity: dict[str, str] = {}
        self.merged_adapters: list[str] = []
        self._trained_before_disabling: list[str] = []
        self._active_adapter: list[str] = []

    def update_layer(self, name: str, config: BottleneckConfig) -> None:
        """Add an adapter that changes nothing yet.

        Its weights are float32 whatever the base has: small updates would round away in bfloat16.
        """
        down = nn.Linear(self.width, config.r, device=self.device, dtype=torch.float32)
        up = nn.Linear(config.r, self.width, device=self.device, dtype=torch.float32)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        self.bottleneck_down[name], self.bottleneck_up[name] = down, up
        self.dropout[name] = nn.Dropout(config.dropout).train(self.training)
        self.non_linearity[name] = config.non_linearity
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, output: Any) -> Any:
        """A block's output with its hidden state adapted.

        Args:
            output: the hidden state (..., d), or a tuple with it first; given back as it is with adapters off.

        Raises:
            ValueError: it is something else.
        """
        if self.disable_adapters:
            return output
        hidden = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(hidden, torch.Tensor) or hidden.shape[-1] != self.width:
            found = f"shape {tuple(hidden.shape)}" if isinstance(hidden, torch.Tensor) else type(hidden).__name__
            raise ValueError(f"a bottleneck adapter needs a hidden state of width {self.width}, but got {found}")
        for name in self._active_adapter:
            if name in self.bottleneck_down:
                hidden = hidden + self._update(name, hidden).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _update(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        inner = down(self.dropout[name](hidden).to(down.weight.dtype))
        result: torch.Tensor = up(getattr(functional, self.non_linearity[name])(inner))
        return result

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapters on or off; those that were frozen before stay frozen.

        PEFT's own would make every active adapter trainable again, also one that is frozen beneath another method
        whose `disable_adapter()` ended.
        """
        if enabled == (not self.disable_adapters):
            return
        if not enabled:
            training = self.bottleneck_down.named_parameters()
            self._trained_before_disabling = sorted({name.split(".")[0] for name, p in training if p.requires_grad})
        self.set_requires_grad(self._trained_before_disabling, requires_grad=enabled)
        self._disable_adapters = not enabled

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_MERGE)

    def unmerge(self) -> None:
        """Nothing is ever merged. PEFT calls this on every layer of a model, also for LoRA above."""

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """After loading with `low_cpu_mem_usage`: PEFT's own looks at a `base_layer`, and casts to its precision."""
        for part in (self.bottleneck_down, self.bottleneck_up):
            if adapter_name in part:
                part[adapter_name].to(device or self.device)

    @property
    def weight(self) -> NoReturn:
        raise AttributeError("a bottleneck layer has no weight of its own")

    @property
    def bias(self) -> NoReturn:
        raise AttributeError("a bottleneck layer has no bias of its own")


def attach(block: nn.Module, layer: BottleneckLayer) -> None:
    """Put a layer behind a block.

    Raises:
        ValueError: the block has something else by that name.
    """
    if hasattr(block, ATTRIBUTE):
        raise ValueError(f"{type(block).__name__} already has an attribute called {ATTRIBUTE!r}")
    block.add_module(ATTRIBUTE, layer.train(block.training))
    block.register_forward_hook(_adapt)


def detach(block: nn.Module) -> None:
    """Take the layer off a block again, whose forward is then what it was."""
    delattr(block, ATTRIBUTE)
    for key, hook in list(block._forward_hooks.items()):
        if hook is _adapt:
            del block._forward_hooks[key]


def attached(block: nn.Module) -> BottleneckLayer | None:
    """The layer behind a block, or None."""
    found = block._modules.get(ATTRIBUTE)
    return found if isinstance(found, BottleneckLayer) else None


def _adapt(block: nn.Module, inputs: Any, output: Any) -> Any:
    """The hook. It asks the block it is called for, so that a copied or replicated block uses its own adapters."""
    layer = attached(block)
    return output if layer is None else layer(output)
