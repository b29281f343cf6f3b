"""Every method that says its update is linear, held against the weights that PEFT merges it into."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import models
from align.interpolation.weights import Update
from align.parameterization import method as methods
from align.parameterization.traits import Linear
from align.policy import stack
from models import settings

SHARE = 0.3
SMALL: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2},
    "c3a": {"block_size": 16},
    "fourierft": {"n_frequency": 9},
    "shira": {"r": 1},
    "waveft": {"n_frequency": 9},
    "gralora": {"r": 4},
    "lokr": {"r": 4},
    "miss": {"r": 4},
}
SETTINGS = {
    **{name: settings(name, peft=SMALL.get(name, {})) for name in methods.others() if name != "adamss"},
    "lora": settings("lora", lora={"r": 2, "alpha": 4}),
    "lora-bias": settings("lora", lora={"r": 2, "alpha": 4, "bias": "lora_only"}),
}


def linear_of(name: str) -> Linear | str:
    method = methods.load(SETTINGS[name]["method"])
    found: Linear | str = method.traits(method.Keys.model_validate(SETTINGS[name])).linear
    return found


LINEAR = [name for name in SETTINGS if isinstance(linear_of(name), Linear)]
FURTHER = [name for name in LINEAR if isinstance(of := linear_of(name), Linear) and of.further]


def adapted(name: str) -> Any:
    method = methods.load(SETTINGS[name]["method"])
    torch.manual_seed(0)
    return method.apply(models.tiny_llama(), method.Keys.model_validate(SETTINGS[name]), stack.TRAINED)


def train(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """Values that training could have come to."""
    torch.manual_seed(seed)
    return {
        name: parameter.detach() + 0.3 * torch.randn_like(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def put(model: Any, values: dict[str, torch.Tensor]) -> Any:
    for name, parameter in model.named_parameters():
        if name in values:
            parameter.data = values[name].clone()
    return model


def effect(model: Any) -> torch.Tensor:
    """What comes out of all adapted layers as they are now, side by side, for the same random input.

    All of these methods are linear in what comes in, so that a share of the outputs is a share of the weights.
    """
    found = []
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, stack.BaseTunerLayer):
            base = module.get_base_layer()
            width = base.weight.shape[-1]
            found.append(module(torch.randn(7, width)).detach().flatten())
    return torch.cat(found)


def plain(name: str) -> torch.Tensor:
    """The same of the base under an adapter that does nothing."""
    model = adapted(name)
    found = []
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, stack.BaseTunerLayer):
            base = module.get_base_layer()
            found.append(base(torch.randn(7, base.weight.shape[-1])).detach().flatten())
    return torch.cat(found)


@pytest.mark.parametrize("name", LINEAR)
def test_a_share_of_a_new_adapter(name: str) -> None:
    model, linear = adapted(name).eval(), linear_of(name)
    assert isinstance(linear, Linear)
    trained = train(model, 1)
    after = effect(put(copy.deepcopy(model), trained))
    before = plain(name)
    assert (after - before).abs().max() > 1e-2
    Update(model, linear, further=False, trained=trained).set(SHARE, "flat")
    torch.testing.assert_close(effect(model), before + SHARE * (after - before), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FURTHER)
def test_a_share_of_an_adapter_that_was_trained_further(name: str) -> None:
    model, linear = adapted(name).eval(), linear_of(name)
    assert isinstance(linear, Linear)
    put(model, train(model, 1))
    before, trained = effect(model), train(model, 2)
    after = effect(put(copy.deepcopy(model), trained))
    assert (after - before).abs().max() > 1e-2
    Update(model, linear, further=True, trained=trained).set(SHARE, "flat")
    torch.testing.assert_close(effect(model), before + SHARE * (after - before), rtol=1e-5, atol=1e-5)


def test_which_methods_have_a_share() -> None:
    assert {"lora", "ia3", "ln_tuning", "vera", "shira"} <= set(LINEAR)
    assert {"lora", "ia3", "shira"} <= set(FURTHER)
    assert not {"oft", "boft", "hra", "road", "prefix_tuning", "prompt_tuning", "osf"} & set(LINEAR)


def test_of_other_weights_than_it_trains_there_is_no_share() -> None:
    model = adapted("lora")
    trained = train(model, 1)
    trained.popitem()
    with pytest.raises(ValueError, match="the files of the stage hold other weights than those that it trains"):
        Update(model, methods.load("lora").traits(methods.load("lora").Keys()).linear, further=False, trained=trained)
