"""How far two models are apart on the same tokens, in one arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from align.policy import load as models
from align.policy import score_head
from align.policy.divergence import forward_kl

CONTEXT = 256  # tokens of a row that are read
SCORED = 96  # of a row, its last
LOGITS = 2**27  # that are kept of a model, in float32


@dataclass(frozen=True)
class Text:
    """Rows to read, and how many of the last positions of each are compared."""

    rows: list[list[int]]
    scored: int

    @classmethod
    def of(cls, model: PreTrainedModel, prompts: Sequence[list[int]]) -> Text:
        """Rows that have a next token, as far as the model reads."""
        context = min(CONTEXT, getattr(model.config.get_text_config(), "max_position_embeddings", None) or CONTEXT)
        rows = [ids[:context] for ids in prompts if len(ids) > 1]
        return cls(rows, max(1, min(SCORED, LOGITS // (models.vocabulary(model) * max(len(rows), 1)))))

    def targets(self) -> torch.Tensor:
        """The next tokens at the positions that are compared, (positions)."""
        return torch.cat([torch.tensor(ids[1:][-self.scored :]) for ids in self.rows])


@torch.no_grad()
def read(model: Any, text: Text) -> torch.Tensor:
    """Logits over next tokens, (positions, vocabulary); of a reward model the score of each row, (rows, 1). float32."""
    found = []
    for ids in text.rows:
        logits = model(input_ids=torch.tensor([ids], device=models.device()), use_cache=False).logits
        found.append((logits if score_head.has(model) else logits[0, :-1][-text.scored :]).float().cpu())
    return torch.cat(found)


def divergence(one: torch.Tensor, other: torch.Tensor) -> float:
    """KL(one || other) in nats, mean over positions; of scores half their squared difference."""
    if one.size(1) == 1:
        return float(((one.double() - other.double()) ** 2 / 2).mean())
    return max(float(forward_kl(one, other).mean()), 0.0)


def loss(logits: torch.Tensor, text: Text) -> float:
    """Mean negative log-likelihood of the next tokens, in nats."""
    return float(torch.nn.functional.cross_entropy(logits, text.targets()))


def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
    """Share of positions at which both find the same token most probable."""
    return float((one.argmax(-1) == other.argmax(-1)).double().mean())


def compute_in(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Hold all weights in a precision, and compute in it; packed weights stay, and are unpacked into it."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # of bitsandbytes, 4 bits
            vars(module).update(compute_dtype=dtype, compute_type_is_set=True)
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and not hasattr(parameter, "quant_state"):
                parameter.data = parameter.data.to(dtype)


@contextmanager
def rounded(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """A float32 model in another precision, weights and arithmetic, for a while.

    Weights that the precision holds exactly are widened again afterwards; of others a copy is kept.
    """
    kept = {
        name: parameter.data
        for name, parameter in model.named_parameters()
        if parameter.dtype == torch.float32 and not torch.equal(parameter.data.to(dtype).float(), parameter.data)
    }
    compute_in(model, dtype)
    try:
        yield
    finally:
        compute_in(model, torch.float32)
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.data = kept[name]
