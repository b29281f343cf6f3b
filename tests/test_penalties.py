"""EWC and L2-SP: the Fisher information against the analytic one, the penalties against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import models
from align.errors import AlignError
from align.lab import data
from align.penalties import fisher, ratio
from align.penalties.fisher import Row
from align.penalties.quadratic import Penalty
from align.penalties.start import Part, Product, parts

WORDS = 5


class Regression(nn.Module):
    """Softmax regression: the logits after a token are its row of a table."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        drawn = torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(seed))
        self.table = nn.Parameter(drawn)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


ROWS: list[Row] = [([0, 1, 2, 3], [-100, 1, 2, 3]), ([4, 4, 4, 1], [-100, -100, 4, 1]), ([2, 0], [-100, 0])]


def slope(model: Regression, row: Row) -> torch.Tensor:
    """The gradient of a row's log-likelihood by hand: for each token, 1 at the one that came less its probabilities."""
    table, found = model.table.detach(), torch.zeros(WORDS, WORDS)
    ids, labels = row
    for before, after in zip(ids, labels[1:], strict=False):
        if after != -100:
            found[before] += nn.functional.one_hot(torch.tensor(after), WORDS) - table[before].softmax(-1)
    return found


def test_the_empirical_fisher_of_softmax_regression_is_the_analytic_one() -> None:
    model = Regression()
    found = fisher.diagonal(model, parts(model), ROWS, "empirical", seed=0)["table"]
    each = torch.stack([slope(model, row) for row in ROWS])
    assert torch.allclose(found, each.square().mean(0), atol=1e-7)
    assert not torch.allclose(found, each.mean(0).square(), atol=1e-2), "not the square of the batch's mean"


def test_the_sampled_fisher_of_softmax_regression_is_p_times_1_less_p_in_expectation() -> None:
    """After one token the score of another is 1 less p with probability p, and -p else: its square is p (1 - p)."""
    model, draws = Regression(), 4000
    rows: list[Row] = [([0, 3, 1, 2], [-100, 3, 1, 2])] * draws  # the labels are not looked at
    found = fisher.diagonal(model, parts(model), rows, "sampled", seed=1)["table"]
    p = model.table.detach().softmax(-1)
    expected = p * (1 - p)
    expected[[2, 4]] = 0.0  # after which nothing is predicted
    spread = (p * (1 - p) * (1 - 2 * p).square() / draws).sqrt()  # standard error of the mean
    assert bool(((found - expected).abs() <= 5 * spread + 1e-6).all())
    again = fisher.diagonal(model, parts(model), rows[:20], "sampled", seed=1)["table"]
    assert torch.equal(again, fisher.diagonal(model, parts(model), rows[:20], "sampled", seed=1)["table"])
    assert not torch.equal(again, fisher.diagonal(model, parts(model), rows[:20], "sampled", seed=2)["table"])


def test_it_is_normalised_to_mean_1_over_all_weights() -> None:
    found, mean = fisher.normalized({"a": torch.full((3, 2), 4.0), "b": torch.zeros(2)})
    assert mean == 3.0
    assert torch.allclose(torch.cat([one.flatten() for one in found.values()]).mean(), torch.tensor(1.0))


def test_rows_of_which_nothing_follows_are_refused() -> None:
    with pytest.raises(AlignError) as error:
        fisher.normalized({"a": torch.zeros(3)})
    assert error.value.what == (
        "the Fisher information on the rows of `ewc.data` is 0 on average, so there is nothing to weigh by"
    )


def lora(continued: bool, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small Llama with LoRA on two kinds of layers; `continued`: trained already, as a stage goes on from it."""
    config = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(models.tiny_llama(), config).to(dtype)
    if continued:
        disturb(model, 0.3)
    return model.eval()


def full(dtype: torch.dtype = torch.float64) -> nn.Module:
    return models.tiny_llama().to(dtype).eval()


@torch.no_grad()
def disturb(model: nn.Module, size: float, seed: int = 5) -> None:
    """Move everything that is trained."""
    drawn = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += size * torch.randn(parameter.shape, generator=drawn, dtype=parameter.dtype)


def lab_rows(n: int = 3) -> list[Row]:
    tokenizer = models.lab_tokenizer()
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in data.rows("lab/helpdesk", n=n)]
    return [(ids, [-100, *ids[1:]]) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("continued", [False, True])
def test_the_fisher_of_an_adapter_is_that_of_the_matrix_it_adapts(continued: bool) -> None:
    model, rows = lora(continued, torch.float32), lab_rows()
    start = parts(model)
    assert [part.shape for part in start if isinstance(part, Product)] == [(16, 16), (16, 32)]
    assert all((part.start is not None) == continued for part in start if isinstance(part, Product))
    found = fisher.diagonal(model, start, rows, "empirical", seed=0)
    for part in start:
        assert isinstance(part, Product)
        weight = model.get_submodule(part.layer).base_layer.weight.requires_grad_()
        each = []
        for row in rows:
            loss = -fisher.log_likelihood(model, row, None, torch.device("cpu"))
            each.append(torch.autograd.grad(loss, weight)[0].square())
        weight.requires_grad_(False)
        assert torch.allclose(found[part.name], torch.stack(each).mean(0), rtol=1e-4, atol=1e-9)


PENALISED: list[tuple[str, Callable[[], nn.Module]]] = [
    ("full", full), ("new LoRA", lambda: lora(False)), ("continued LoRA", lambda: lora(True)),
]  # fmt: skip


def uneven(start: list[Part]) -> dict[str, torch.Tensor]:
    """A Fisher information that is different for every weight."""
    drawn = torch.Generator().manual_seed(9)
    shapes = {part.name: part.shape if isinstance(part, Product) else part.start.shape for part in start}
    return {name: torch.rand(shape, generator=drawn, dtype=torch.float64) * 2 for name, shape in shapes.items()}


@pytest.mark.parametrize("weighed", [True, False], ids=["EWC", "L2-SP"])
@pytest.mark.parametrize(("name", "make"), PENALISED, ids=[name for name, _ in PENALISED])
def test_the_gradient_of_a_penalty_is_that_of_finite_differences(
    name: str, make: Callable[[], nn.Module], weighed: bool
) -> None:
    model = make()
    start = parts(model)
    penalty = Penalty("ewc", 0.7, start, uneven(start) if weighed else None)
    assert penalty.loss(model).item() == 0.0, "nothing has moved yet"
    assert not any(bool(one.any()) for part in start for one in penalty.slopes(part, dict(model.named_parameters())))
    disturb(model, 0.1, seed=6)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    exact = torch.autograd.grad(penalty.loss(model), trained)
    for seed in range(3):
        drawn = torch.Generator().manual_seed(seed)
        way = [torch.randn(one.shape, generator=drawn, dtype=torch.float64) for one in trained]
        ends = [shifted(model, trained, way, step, penalty) for step in (1e-5, -1e-5)]
        slope = sum(float((one * along).sum()) for one, along in zip(exact, way, strict=True))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-7)
    named = dict(model.named_parameters())
    for part in start:
        for key, weighted in zip(part.parameters, penalty.slopes(part, named), strict=True):
            at = next(i for i, one in enumerate(trained) if one is named[key])
            assert torch.allclose(weighted, 0.7 * exact[at])


@torch.no_grad()
def shifted(
    model: nn.Module, trained: list[nn.Parameter], way: list[torch.Tensor], step: float, penalty: Penalty
) -> float:
    for parameter, along in zip(trained, way, strict=True):
        parameter += step * along
    found = penalty.loss(model).item()
    for parameter, along in zip(trained, way, strict=True):
        parameter -= step * along
    return found


@pytest.mark.parametrize("weighed", [True, False], ids=["EWC", "L2-SP"])
def test_the_penalty_of_an_adapter_is_that_of_its_effective_update(weighed: bool) -> None:
    """Against PEFT's own products; B and A may change as they like while these stay."""
    model = lora(True)
    start, layers = parts(model), {}
    weights = uneven(start)
    for part in start:
        layers[part.name] = model.get_submodule(part.layer).get_delta_weight("default").clone()
    disturb(model, 0.2)
    expected = 0.0
    for part in start:
        moved = model.get_submodule(part.layer).get_delta_weight("default") - layers[part.name]
        expected += float((moved.square() * (weights[part.name] if weighed else 1.0)).sum()) / 2
    penalty = Penalty("l2_sp", 1.0, start, weights if weighed else None)
    assert penalty.loss(model).item() == pytest.approx(expected, rel=1e-9)
    with torch.no_grad():
        for part in start:
            b, a = (model.get_parameter(name) for name in part.parameters)
            b *= 4
            a /= 4
    assert penalty.loss(model).item() == pytest.approx(expected, rel=1e-9)


def test_the_ratio_is_of_the_gradients_of_the_penalty_and_of_the_rest() -> None:
    model = full(torch.float32)
    start = parts(model)
    penalties = [Penalty("ewc", 0.5, start, {part.name: torch.ones(part.start.shape) * 2 for part in start}),
                 Penalty("l2_sp", 0.1, start)]  # fmt: skip
    disturb(model, 0.1)
    rest = {name: torch.full_like(parameter, 0.01) for name, parameter in model.named_parameters()}
    moved = {part.name: model.get_parameter(part.name).detach() - part.start for part in start}
    for name, parameter in model.named_parameters():
        parameter.grad = 8 * (rest[name] + 0.5 * 2 * moved[name] + 0.1 * moved[name])  # scaled, as in float16
    whole = sum(float(one.square().sum()) for one in moved.values()) ** 0.5
    norm = sum(float(one.square().sum()) for one in rest.values()) ** 0.5
    found = ratio.ratios(model, penalties, scale=8.0)
    assert found == {"ewc": pytest.approx(whole / norm, rel=1e-4), "l2_sp": pytest.approx(0.1 * whole / norm, rel=1e-4)}
    for parameter in model.parameters():
        parameter.grad = None
    assert ratio.ratios(model, penalties) == {}, "nothing to compare with"
