"""The PEFT tuner: where adapters go in a model, and how they are switched, saved and taken off."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, ClassVar, NoReturn

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from align.bottleneck.config import PEFT_TYPE, BottleneckConfig
from align.bottleneck.layer import NO_MERGE, BottleneckLayer, attach, attached, detach


class BottleneckModel(BaseTuner):
    """Bottleneck adapters on a model, which may hold the layers of other PEFT methods.

    Those stay as they are, active or not, and are frozen; `disable_adapter()`, `set_adapter()`, `unload()` and saving
    concern the bottleneck adapters only. A PeftModel given as `model` stands for the model in it.

    Raises:
        ValueError: the model's blocks are not found; it has bottleneck adapters already, or prompts.
    """

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}  # PEFT's, by families; see find_blocks

    def __init__(
        self,
        model: nn.Module,
        peft_config: BottleneckConfig | dict[str, PeftConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        model = _injected(model)
        frozen = list(model.parameters())
        # PEFT would write the new adapter into the dict of the methods below, which then would be saved with it
        below = model.__dict__.pop("peft_config", None)
        try:
            super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage, state_dict)
        except Exception:  # whatever PEFT raises: the model is given back as it came
            if below is not None:
                model.peft_config = below
            raise
        self._peft_config_below = below
        for parameter in frozen:
            parameter.requires_grad_(False)

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        if peft_config.target_modules is None:
            layers = peft_config.layers_to_transform
            chosen = [layers] if isinstance(layers, int) else layers
            peft_config.target_modules = find_blocks(self.model, peft_config.placement, chosen)
        return peft_config

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = attached(target)
        if layer is None:
            width = _linear_width(target) or _dimension(self.model, "hidden_size")
            if width is None:
                raise ValueError(f"the width of {current_key}, a {type(target).__name__}, cannot be determined")
            device = next((parameter.device for parameter in target.parameters()), torch.device("cpu"))
            layer = BottleneckLayer(width, device)
            attach(target, layer)
        layer.update_layer(adapter_name, peft_config)

    def _own(self) -> Iterator[BottleneckLayer | AuxiliaryTrainingWrapper]:
        """The layers of this method, and the modules that are saved whole with one of its adapters."""
        model: nn.Module = self.model
        for module in model.modules():
            saved = isinstance(module, AuxiliaryTrainingWrapper) and module._adapters & self.peft_config.keys()
            if saved or isinstance(module, BottleneckLayer):
                yield module

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        for module in self._own():
            module.enable_adapters(enabled)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make these adapters act, in this order, and train unless `inference_mode`.

        PEFT's own would also switch off what LoRA beneath keeps in `modules_to_save`.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        for module in self._own():
            present = names if isinstance(module, BottleneckLayer) else [n for n in names if n in module._adapters]
            if not isinstance(module, BottleneckLayer):
                module.enable_adapters(bool(present))
            module.set_adapter(present, inference_mode=inference_mode)
        self.active_adapter = adapter_name

    def _check_merge_allowed(self) -> NoReturn:
        raise ValueError(NO_MERGE)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        for block in list(self.model.modules()):
            if attached(block) is not None:
                detach(block)
        for name, module in list(self.model.named_modules()):
            if isinstance(module, AuxiliaryTrainingWrapper):
                self._give_up(name, module)
        model: nn.Module = self.model
        model.__dict__.pop("peft_config", None)
        if self._peft_config_below is not None:
            model.peft_config = self._peft_config_below
        return model

    def _give_up(self, name: str, wrapper: AuxiliaryTrainingWrapper) -> None:
        """Take this method's copies out of a module that is saved whole, and the wrapper off if none is left."""
        for adapter in wrapper._adapters & self.peft_config.keys():
            wrapper.delete_adapter(adapter, new_active_adapters=None)
        if not wrapper._adapters:
            parent, _, last = name.rpartition(".")
            setattr(self.model.get_submodule(parent), last, wrapper.original_module)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """The weights of one adapter. PEFT's own takes in the layers of every method in the model."""
        owners = {
            f"{name.removeprefix('_fsdp_wrapped_module.')}.{part}.{adapter_name}"
            for name, module in model.named_modules()
            if isinstance(module, BottleneckLayer)
            for part in BottleneckLayer.adapter_layer_names
        }
        return {key: tensor for key, tensor in state_dict.items() if key.rpartition(".")[0] in owners}


def find_blocks(model: nn.Module, placement: str, layers: list[int] | None = None) -> set[str]:
    """The names of the modules that adapters follow.

    A layer is an item of the one list of modules that is as long as the configuration says and whose items hold one
    attention block, by its name, and one MLP block: the other child with weight matrices, or the last of several
    linear ones (OPT). A block that adds the residual itself (Bloom) stands for its output projection, so that the
    adapter sees the block's own output in every model.

    Args:
        placement: `pfeiffer` or `houlsby`.
        layers: indices of the layers; None is all.

    Raises:
        ValueError: there is no such list, or more than one, or an index is beyond it.
    """
    depth, width = _dimension(model, "num_hidden_layers"), _dimension(model, "hidden_size")
    found = [
        (name, places)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
        if None not in (places := [_places(layer, placement, width) for layer in module])
    ]
    if len(found) != 1:
        raise ValueError(
            f"the attention and MLP blocks of {type(model).__name__} cannot be determined from its structure: name the "
            "blocks that get an adapter in target_modules"
        )
    ((name, places),) = found
    beyond = [index for index in layers or [] if not 0 <= index < len(places)]
    if beyond:
        raise ValueError(
            f"layers_to_transform names layer {beyond[0]}, but {type(model).__name__} has {len(places)} layers, "
            "counted from 0"
        )
    chosen = range(len(places)) if layers is None else layers
    return {f"{name}.{index}.{place}" for index in chosen for place in places[index] or []}


def _places(layer: nn.Module, placement: str, width: int | None) -> list[str] | None:
    """The names within a layer of what adapters follow, or None where it is not such a layer."""
    blocks = {
        name: child for name, child in layer.named_children() if any(weight.ndim > 1 for weight in child.parameters())
    }
    attention = [name for name, block in blocks.items() if _is_attention(name, block)]
    others = [name for name in blocks if name not in attention]
    linear = [name for name in others if _linear_width(blocks[name])]
    if len(attention) != 1 or not others or (len(others) > 1 and linear != others):
        return None
    chosen = [others[-1]] if placement == "pfeiffer" else [attention[0], others[-1]]
    places = [_before_residual(name, blocks[name], width) for name in chosen]
    if None in places or (linear and _linear_width(blocks[others[-1]]) != width):
        return None
    return [place for place in places if place is not None]


def _is_attention(name: str, block: nn.Module) -> bool:
    return any(word in text.lower() for text in (name, type(block).__name__) for word in ("attn", "attention"))


def _before_residual(name: str, block: nn.Module, width: int | None) -> str | None:
    """The block itself, or its output projection where the block is given the residual to add; None without one."""
    if "residual" not in inspect.signature(block.forward).parameters:
        return name
    projections = [child for child, module in block.named_children() if _linear_width(module) == width]
    return f"{name}.{projections[-1]}" if projections else None


def _linear_width(module: nn.Module) -> int | None:
    """The number of outputs of a linear layer, under the layers of other methods, or None for other modules."""
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        return None
    width = getattr(module, "out_features", getattr(module, "nf", None))  # nf: transformers' Conv1D
    return width if isinstance(width, int) else None


def _dimension(model: nn.Module, name: str) -> int | None:
    """A number of the configuration, of its text part where a model sees images too."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    value = getattr(text, name, None)
    return value if isinstance(value, int) else None


def _injected(model: nn.Module) -> nn.Module:
    """The model in which another method's layers lie, out of its PeftModel."""
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"bottleneck adapters cannot be added on top of {model.peft_type.value}, which uses prompts"
            )
        model = model.get_base_model()
    if any(isinstance(module, BottleneckLayer) for module in model.modules()):
        raise ValueError(
            "the model already has bottleneck adapters: add another with add_adapter() or load_adapter(), and "
            "activate several with base_model.set_adapter([...])"
        )
    return model


if PEFT_TYPE not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name="bottleneck", config_cls=BottleneckConfig, model_cls=BottleneckModel)
