"""The diagonal of the Fisher information of what a stage trains, on given rows.

F = E[(d log p(y|x) / d w)^2] (Kirkpatrick et al. 2017, arXiv 1612.00796): the square of each example's own gradient,
then the mean; the square of a batch's mean gradient would be far smaller, and something else. `empirical` takes y from
the data; `sampled` draws each token from the policy's distribution after the data's tokens before it, which is the
Fisher information proper (Kunstner et al. 2019, arXiv 1905.12558, on the difference).

Of an adapter the gradient is that of the adapted matrix W, which may be quantised and has none of its own: the sum over
an example's tokens of dL/dy x', with the layer's input x and output y. That is (out, in), the size of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import nn

from align.data.encode import IGNORE
from align.errors import AlignError, Exit
from align.penalties.start import Part, Product, Whole

Kind = Literal["empirical", "sampled"]
Row: TypeAlias = "tuple[Sequence[int], Sequence[int]]"
"""Token ids, and the same with -100 for those that are not learnt."""


def diagonal(
    model: nn.Module,
    parts: Sequence[Part],
    rows: Sequence[Row],
    kind: Kind,
    seed: int,
    told: Callable[[int], None] = lambda done: None,
) -> dict[str, torch.Tensor]:
    """The diagonal by the name of a part, of its shape, float32, as it comes: not normalised.

    Args:
        model: the policy; in evaluation within, so that nothing is dropped.
        rows: at least one, each with a token that is learnt.
        seed: of sampled tokens.
        told: is given the number of rows done.
    """
    sums = {part.name: torch.zeros(_shape(part), device=_device(model)) for part in parts}
    drawn = torch.Generator().manual_seed(seed)
    with _evaluating(model):
        for number, row in enumerate(rows):
            for name, gradient in of_example(model, parts, row, drawn if kind == "sampled" else None):
                sums[name] += gradient.float().square()
            told(number + 1)
    return {name: total / len(rows) for name, total in sums.items()}


def normalized(fisher: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], float]:
    """Divided by its mean over all weights, and that mean.

    Raises:
        AlignError: it is 0 or no number.
    """
    weights = sum(tensor.numel() for tensor in fisher.values())
    mean = sum(float(tensor.sum(dtype=torch.float64)) for tensor in fisher.values()) / weights
    if not 0 < mean < float("inf"):
        what = (
            f"the Fisher information on the rows of `ewc.data` is {mean:g} on average, so there is nothing to weigh by"
        )
        raise AlignError(what, "give other rows, or train in float32", exit=Exit.STAGE_FAILED)
    return {name: tensor / mean for name, tensor in fisher.items()}, mean


def of_example(
    model: nn.Module, parts: Sequence[Part], row: Row, drawn: torch.Generator | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The gradient of one example's log-likelihood, by the name of a part; the parts that it does not reach left out.

    Args:
        drawn: draws the tokens; None takes those of the row.
    """
    own, device = dict(model.named_parameters()), _device(model)
    whole = [part for part in parts if isinstance(part, Whole)]
    products = {part.layer: part.name for part in parts if isinstance(part, Product)}
    with torch.enable_grad(), _watched(model, list(products)) as seen:
        loss = -log_likelihood(model, row, drawn, device)
        asked = [own[part.name] for part in whole] + [output for _, _, output in seen]
        found = torch.autograd.grad(loss, asked, allow_unused=True)
    for part, gradient in zip(whole, found, strict=False):
        if gradient is not None:
            yield part.name, gradient
    sums = dict[str, torch.Tensor]()
    for (layer, given, _), slope in zip(seen, found[len(whole) :], strict=True):
        if slope is not None:  # a layer may be used more than once
            outer = slope.flatten(0, -2).float().T @ given.flatten(0, -2).float()
            sums[layer] = sums[layer] + outer if layer in sums else outer
    yield from ((products[layer], gradient) for layer, gradient in sums.items())


def log_likelihood(model: nn.Module, row: Row, drawn: torch.Generator | None, device: torch.device) -> torch.Tensor:
    """Of the learnt tokens of one example, summed."""
    ids, labels = (torch.tensor(list(values), device=device) for values in row)
    where = (labels[1:] != IGNORE).nonzero().squeeze(1)
    logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False).logits
    log_probs = logits[0, -len(ids) :][where].float().log_softmax(-1)  # a learnt prompt would stand before them
    chosen = labels[1:][where]
    if drawn is not None:
        chosen = torch.multinomial(log_probs.detach().exp().cpu(), 1, generator=drawn).squeeze(1).to(device)
    found: torch.Tensor = log_probs.gather(1, chosen[:, None]).sum()
    return found


@contextmanager
def _watched(model: nn.Module, layers: Sequence[str]) -> Iterator[list[tuple[str, torch.Tensor, torch.Tensor]]]:
    """The input and the output of each call of these layers, within."""
    seen = list[tuple[str, torch.Tensor, torch.Tensor]]()

    def hook(name: str) -> Callable[..., None]:
        return lambda _, given, output: seen.append((name, given[0].detach(), output))

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def _shape(part: Part) -> tuple[int, ...]:
    return part.shape if isinstance(part, Product) else tuple(part.start.shape)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
