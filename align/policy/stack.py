"""A policy's adapters on its base, whatever their methods: put on in order, all acting; taken off.

A PeftModel holds adapters of one method. An adapter of another method gets a PeftModel of its own around the same base:
PEFT works inside the base, so that a later adapter's layer wraps an earlier one's, and each is saved and loaded under
the names it would have alone. A PeftModel around a PeftModel would save names that fit only the same nesting. The
outermost PeftModel is what a trainer sees; it knows the names of the earlier adapters, and leaves them out of its file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    PeftType,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from align.bottleneck.layer import BottleneckLayer, detach
from align.errors import AlignError
from align.policy import load as models
from align.policy import score_head
from align.policy.unwrapped import unwrapped
from align.run_folder.records import Adapter, Gives, Policy

TRAINED = "default"  # PEFT's name of the adapter that a stage trains; earlier ones are named for their stage


def names(adapters: Sequence[Adapter]) -> list[str]:
    """PEFT's names of a policy's adapters. A stage may be called `train` or `default`, which PEFT cannot take."""
    return [f"stage_{adapter.name}" for adapter in adapters]


def bare(model: Any) -> PreTrainedModel:
    """The base inside its PeftModel, with the layers of its adapters still in it, ready for another PeftModel."""
    base = unwrapped(model)
    vars(base).pop("peft_config", None)  # else the next PeftModel takes the earlier one's adapters for its own
    return base


def put(model: Any, adapters: Sequence[Adapter], run: Path, *, last: str | None = None) -> Any:
    """Load adapters onto a model, in order; all act, and none is trainable.

    Args:
        model: a base, or a base with adapters.
        run: the run folder, which the adapters' paths are relative to.
        last: the PEFT name of the last adapter; by default its own.
    """
    called = names(adapters)
    if last is not None and called:
        called[-1] = last
    for name, adapter in zip(called, adapters, strict=True):
        folder = _safe(run / adapter.path)
        config = fitting(PeftConfig.from_pretrained(folder), model)
        if _takes(model, config):
            model.add_adapter(name, config)
            set_peft_model_state_dict(model, _weights(folder, model), adapter_name=name)
        else:
            earlier, loading = _settings(model), {"adapter_name": name, "autocast_adapter_dtype": True}
            model = PeftModel.from_pretrained(bare(model), folder, config=config, **loading)
            model.peft_config.update(earlier)
    if adapters:
        activate(model, called)
        model.requires_grad_(False)
    return model


def _safe(folder: Path) -> str:
    """An adapter's folder.

    Raises:
        AlignError: its weights are no safetensors; PEFT would look for pickled ones then, which run code.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        what = f"'{folder}' has no adapter_model.safetensors"
        raise AlignError(what, "copy the adapter again; pickled weights are not read")
    return str(folder)


def _weights(folder: str, model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter, without a reward model's head where the model has none."""
    stored: dict[str, torch.Tensor] = load_peft_weights(folder, device=str(models.device()))
    return stored if score_head.has(model) else {name: t for name, t in stored.items() if not score_head.is_head(name)}


def resume(model: Any, adapter: Adapter, run: Path) -> PeftModel:
    """A finished adapter on top of those that the model has, all acting; it alone is trained further."""
    earlier = _settings(model)
    folder = _safe(run / adapter.path)
    config = PeftConfig.from_pretrained(folder)
    if config.is_prompt_learning or score_head.has(model):
        # PEFT loads a learnt prompt only to be used, and a policy's adapter has no head for its scores yet: the adapter
        # is made anew, and its weights then loaded
        config.inference_mode = False
        model = add(model, config, TRAINED)
        stored = get_peft_model_state_dict(model, adapter_name=TRAINED) | load_peft_weights(folder, device="cpu")
        set_peft_model_state_dict(model, stored, adapter_name=TRAINED)
        return model
    if _takes(model, config):
        model.load_adapter(folder, adapter_name=TRAINED, is_trainable=True, autocast_adapter_dtype=True)
    else:
        model = PeftModel.from_pretrained(
            bare(model), folder, adapter_name=TRAINED, is_trainable=True, autocast_adapter_dtype=True
        )
        model.peft_config.update(earlier)
    activate(model, [*earlier, TRAINED])
    freeze(model, list(earlier))
    return model


def add(model: Any, config: PeftConfig, name: str) -> PeftModel:
    """A new adapter on top of those that the model has, all acting; only the new one is trainable.

    It is float32, also over a 4-bit base: small updates would round away in bfloat16; see `cast_trained`.

    Raises:
        AlignError: PEFT cannot put such an adapter on this model.
    """
    earlier = _settings(model)
    if score_head.has(model):
        config = _with_head(config, model)
    with refusal(str(config.peft_type.value).lower()):
        if _takes(model, config):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(bare(model), config, adapter_name=name, autocast_adapter_dtype=True)
            model.peft_config.update(earlier)
    activate(model, [*earlier, name])
    freeze(model, list(earlier))
    return model


def cast_trained(model: torch.nn.Module, dtype: str) -> Any:
    """Give an adapter's trainable weights a dtype. PEFT makes them float32 by itself; in bfloat16 they are what TRL
    trains over a quantised base. DoRA's magnitudes stay float32 there too: bfloat16 would freeze them."""
    if dtype != "float32":
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


@contextmanager
def refusal(method: str) -> Iterator[None]:
    """What PEFT refuses, as one sentence."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        remedy = "fix the keys of the parameterization, or choose another method"
        raise AlignError(f"PEFT cannot put '{method}' on this model: {reason}", remedy) from error


def _settings(model: Any) -> dict[str, PeftConfig]:
    """The adapters of a model by name, in order."""
    return dict(model.peft_config) if isinstance(model, PeftModel) else {}


def _takes(model: Any, config: PeftConfig) -> bool:
    """Whether the model's outermost PeftModel can hold an adapter of this method beside its own. AdaLoRA's shares ranks
    out for one alone, and whole modules of a second adapter would not be switched on with it."""
    same = isinstance(model, PeftModel) and model.peft_type == config.peft_type
    return same and config.peft_type != PeftType.ADALORA and not getattr(config, "modules_to_save", None)


def fitting(config: PeftConfig, model: Any) -> PeftConfig:
    """The settings of a finished adapter for this model: one of a language model may go on a reward model, and the
    other way round, where it comes without the head."""
    if score_head.has(model) and config.task_type == TaskType.CAUSAL_LM:
        config.task_type = None
    elif not score_head.has(model) and config.task_type == TaskType.SEQ_CLS:
        config.task_type = TaskType.CAUSAL_LM
        kept = [
            name for name in config.modules_to_save or [] if name not in (score_head.SCORE, "classifier")
        ]  # PEFT's name
        config.modules_to_save = kept or None
    return config


def _with_head(config: PeftConfig, model: Any) -> PeftConfig:
    """Settings of an adapter that trains a reward model's head with it, and is saved with it. What else is trained
    whole are the modules that the reward model has: it has no head for tokens.

    Raises:
        AlignError: PEFT's method has no place for it.
    """
    if config.is_prompt_learning or not hasattr(config, "modules_to_save"):
        what = f"PEFT's '{config.peft_type.value.lower()}' has no place for the head of a reward model"
        raise AlignError(what, "give the stage another parameterization, such as lora")
    config.task_type = TaskType.SEQ_CLS
    there = [name for name, _ in model.named_modules()]
    kept = [entry for entry in config.modules_to_save or [] if any(f".{name}".endswith(f".{entry}") for name in there)]
    config.modules_to_save = [*(entry for entry in kept if entry != score_head.SCORE), score_head.SCORE]
    return config


def activate(model: torch.nn.Module, called: Sequence[str]) -> None:
    """Make these adapters act together, in every layer that has them; a layer is told only of its own, and a module
    that is trained whole of the last of them."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            own = module._get_available_adapters()
            module.set_adapter([name for name in called if name in own])
        elif isinstance(module, ModulesToSaveWrapper):
            module.set_adapter([name for name in called if name in module.modules_to_save][-1:])


def freeze(model: torch.nn.Module, called: Sequence[str]) -> None:
    """Freeze these adapters; PEFT makes every active one trainable."""
    for name, parameter in model.named_parameters():
        if set(called) & set(name.split(".")):
            parameter.requires_grad_(False)


def strip(model: Any) -> PreTrainedModel:
    """The base alone: every adapter's layer is replaced by what it wraps."""
    base = bare(model)
    for name, module in list(base.named_modules()):
        if isinstance(module, BottleneckLayer):  # first: it may stand behind a layer that is replaced below
            detach(base.get_submodule(name.rpartition(".")[0]))
    for name, module in list(base.named_modules()):
        parent, _, child = name.rpartition(".")
        if isinstance(module, BaseTunerLayer) and child != "base_layer":
            setattr(base.get_submodule(parent), child, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            setattr(base.get_submodule(parent), child, module.original_module)
    return base


def base_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the base alone, by the names it has without adapters."""
    layers = [f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    found = {}
    for name, tensor in model.state_dict().items():
        owner = max((layer for layer in layers if name.startswith(layer)), key=len, default=None)
        if owner is None or name.removeprefix(owner).startswith("base_layer."):  # else it is an adapter's
            found[name.replace(".base_layer", "")] = tensor
    return found


def load_policy(policy: Policy, keys: dict[str, Any], run: Path) -> Any:
    """A policy as it stands in a run folder, in evaluation mode, its adapters active.

    Args:
        keys: the recipe's `model`.
    """
    return put(load_base(policy, keys, run), policy.adapters, run).eval()


def load_reward(model: Policy, keys: dict[str, Any], run: Path) -> Any:
    """A reward model as it stands in a run folder, in evaluation mode, its adapters active.

    Args:
        keys: the recipe's `model`.
    """
    return put(load_base(model, keys, run, gives="reward"), model.adapters, run).eval()


def load_base(policy: Policy, keys: dict[str, Any], run: Path, gives: Gives = "policy") -> PreTrainedModel:
    """What the adapters of a policy or a reward model stand on."""
    dtype = models.dtype_of(keys.get("dtype", "auto"), trains_base=policy.weights is not None)
    folder = str(run / policy.weights) if policy.weights else policy.base.path
    return models.load_weights(folder, keys, dtype, policy.quantization, gives)
