"""How far weights moved, against updates that are formed whole; and what cannot be told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import nn

from align.errors import AlignError
from align.forgetting.distances import Drift
from align.forgetting.drift import drift, layer_of
from align.parameterization import method as methods
from align.policy import load as loading
from align.policy import stack
from models import MODEL_DIR, settings, tiny_llama

CLOSE = 1e-5


def put(model: Any, name: str, method: str, **keys: Any) -> Any:
    """A new adapter with weights that are far from where they begin."""
    found = methods.load(method)
    model = found.apply(model, found.Keys.model_validate({"method": method, **keys}), name)
    torch.manual_seed(len(name))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}


def norm(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str = "") -> float:
    """||W' - W|| / ||W|| of the weights whose names begin so, with every update formed."""
    names = [name for name in before if name.startswith(part)]
    change = sum(float(((after[name] - before[name]) ** 2).sum()) for name in names)
    return math.sqrt(change / sum(float((before[name] ** 2).sum()) for name in names))


def check(found: Drift, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert found.all is not None and found.undefined is None
    assert found.all.relative == pytest.approx(norm(before, after), rel=CLOSE)
    for layer in found.layers:
        assert layer.relative == pytest.approx(norm(before, after, f"{layer.name}."), rel=CLOSE, abs=1e-9), layer.name
    for module in found.modules:
        assert module.relative == pytest.approx(norm(before, after, f"{module.name}."), rel=CLOSE), module.name
    relative = [module.relative or 0.0 for module in found.modules]
    assert relative and relative == sorted(relative, reverse=True)


MERGED: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "rslora": ("lora", {"lora": {"r": 4, "alpha": 8, "use_rslora": True}}),
    "dora": ("lora", {"lora": {"r": 4, "use_dora": True}}),
    "embedding": ("lora", {"lora": {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}}),
    "whole head": ("lora", {"lora": {"r": 4, "modules_to_save": ["lm_head"]}}),
    "adalora": ("adalora", {}),
    "ia3": ("ia3", {}),
    "loha": ("loha", {}),
    "oft": ("oft", {"peft": {"oft_block_size": 4}}),
    "ln_tuning": ("ln_tuning", {}),
}


@pytest.mark.parametrize("name", MERGED)
def test_the_drift_of_an_adapter_is_that_of_its_merged_weights(name: str) -> None:
    method, keys = MERGED[name]
    before = weights(tiny_llama())
    model = put(tiny_llama(), "default", method, **keys)
    was = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = drift(model, None)
    check(found, before, weights(model.merge_and_unload()))
    again = put(tiny_llama(), "default", method, **keys)
    drift(again, None)
    assert all(torch.equal(was[key], tensor) for key, tensor in again.state_dict().items()), "left as it was"


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.others())
def test_no_method_of_peft_ends_a_stage_here(name: str) -> None:
    """Each has the figure of its merged weights, or a reason why it has none; and its weights are left as they were."""
    before = weights(tiny_llama())
    try:
        model = put(tiny_llama(), "default", name)
    except (AlignError, ValidationError) as error:
        pytest.skip(f"not on a model as small as this, or not installed: {error}")
    was = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = drift(model, None)
    assert all(torch.equal(was[key], tensor) for key, tensor in model.state_dict().items())
    if found.undefined is None:
        check(found, before, weights(model.merge_and_unload()))
    else:
        assert found.all is None


def test_adapters_on_top_of_each_other_are_one_update() -> None:
    """Their products overlap: the norms alone would add up to another figure."""
    before = weights(tiny_llama())
    model = put(tiny_llama(), "first", "lora", lora={"r": 4, "alpha": 16, "target_modules": ["q_proj", "v_proj"]})
    model = put(model, "default", "lora", lora={"r": 8})
    for layer in model.modules():
        if hasattr(layer, "lora_A") and "first" in layer.lora_A:  # half of the second is the first again
            layer.lora_A["default"].weight.data[:4] = layer.lora_A["first"].weight.data
            layer.lora_B["default"].weight.data[:, :4] = layer.lora_B["first"].weight.data
    stack.activate(model, ["first", "default"])
    found = drift(model, None)
    check(found, before, weights(model.merge_and_unload()))


def test_methods_on_top_of_each_other() -> None:
    before = weights(tiny_llama())
    model = put(put(tiny_llama(), "first", "loha"), "default", "lora", lora={"r": 4})
    found = drift(model, None)
    inner = stack.bare(model)
    after = dict(before)
    for name, module in inner.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            below = module.base_layer
            update = module.get_delta_weight("default") + below.get_delta_weight("first")
            after[f"{name}.weight"] = before[f"{name}.weight"] + update.double()
    check(found, before, after)


def test_trained_weights_are_held_against_the_files_and_count_with_an_adapter_on_them(tmp_path: Path) -> None:
    base = tiny_llama()
    base.save_pretrained(tmp_path)
    before = weights(base)
    torch.manual_seed(5)
    for name, parameter in base.named_parameters():
        if "mlp" in name or "q_proj" in name:
            parameter.data += 0.01 * torch.randn_like(parameter)
    check(drift(base, tmp_path), before, weights(base))
    model = put(base, "default", "lora", lora={"r": 4})
    found = drift(model, tmp_path)
    check(found, before, weights(model.merge_and_unload()))


def test_a_base_in_half_precision_is_no_drift_of_what_was_loaded_from_it(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    loaded = loading.load_weights(str(tmp_path), {}, torch.bfloat16, None)
    found = drift(loaded, tmp_path)
    assert found.all is not None and found.all.relative == 0 and found.modules == ()


def test_nothing_moves_under_an_adapter_that_is_new() -> None:
    method = methods.load("lora")
    found = drift(method.apply(tiny_llama(), method.Keys(), "default"), None)
    assert found.all is not None and found.all.relative == 0 and found.modules == ()
    assert [layer.name for layer in found.layers] == ["model.layers.0", "model.embed_tokens", "model.norm", "lm_head"]


def test_four_bits_are_unpacked_and_the_update_is_exact() -> None:
    from bitsandbytes.functional import dequantize_4bit

    qlora = methods.load("qlora")
    keys = qlora.Keys.model_validate(settings("qlora", lora={"r": 4}))
    model = put(loading.load_weights(str(MODEL_DIR), {}, torch.bfloat16, qlora.quantization(keys)), "default", "qlora")
    found = drift(model, None)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    weight = dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state).double()
    update = (
        layer.scaling["default"] * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    )
    (moved,) = (module for module in found.modules if module.name == "model.layers.0.self_attn.q_proj")
    assert moved.relative == pytest.approx(float(update.norm() / weight.norm()), rel=CLOSE)


def test_dora_over_four_bits_says_why_it_has_no_figure() -> None:
    keys = {"lora": {"r": 4, "use_dora": True, "target_modules": ["q_proj"]}}
    qlora = methods.load("qlora")
    quantization = qlora.quantization(qlora.Keys.model_validate({"method": "qlora", **keys}))
    model = put(loading.load_weights(str(MODEL_DIR), {}, torch.bfloat16, quantization), "default", "qlora", **keys)
    assert drift(model, None).written() == {
        "note": "",
        "undefined": "not computed for dora over weights in 4 or 8 bits: its update is no sum of products B A, and "
        "PEFT merges it only by rounding to those bits again (4 modules)",
    }


@pytest.mark.parametrize(
    ("method", "keys", "why"),
    [
        ("adapter", {}, "a bottleneck adapter changes no weight of the base (1 module)"),
        ("prompt_tuning", {}, "a learnt prompt changes no weight of the base"),
        ("prefix_tuning", {}, "a learnt prompt changes no weight of the base"),
    ],
)
def test_what_changes_no_weight_has_no_figure(method: str, keys: dict[str, Any], why: str) -> None:
    model = put(tiny_llama(), "default", method, **keys)
    assert isinstance(model, PeftModel)
    assert (drift(model, None).all, drift(model, None).undefined) == (None, why)


def test_names_of_layers() -> None:
    assert [layer_of(name) for name in ("model.layers.12.mlp.up_proj", "h.3", "model.embed_tokens", "lm_head")] == [
        "model.layers.12",
        "h.3",
        "model.embed_tokens",
        "lm_head",
    ]
