"""A LoRA adapter before and after it was trained further, side by side in one of both ranks.

Its scale stays what it was, alpha / r or with rsLoRA alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732), so that a
later stage trains it on at the same pace: alpha grows with the rank. The shares are in B.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from align.policy.stack import TRAINED


@dataclass(frozen=True)
class Pair:
    """A and B of one layer.

    Attributes:
        names: of the two in the model.
        a, b: the parameters, (r, in) and (out, r); of an adapter on experts all of these along r.
        before, after: their values.
        experts: how many share the rows of A and the columns of B.
    """

    names: tuple[str, str]
    a: nn.Parameter
    b: nn.Parameter
    before: tuple[torch.Tensor, torch.Tensor]
    after: tuple[torch.Tensor, torch.Tensor]
    experts: int

    def set(self, share: float, *, whole: bool) -> None:
        """Put both side by side, B by its share; or one of them alone, bit for bit."""
        if whole:
            self.a.data, self.b.data = self.after if share == 1 else self.before
            return
        (a0, b0), (a1, b1) = self.before, self.after
        self.a.data = self._rows(a0.float(), a1.float()).to(a1.dtype)
        self.b.data = self._columns((1 - share) * b0.float(), share * b1.float()).to(b1.dtype)

    def _rows(self, *parts: torch.Tensor) -> torch.Tensor:
        """(experts r0, in) and (experts r1, in) as (experts (r0 + r1), in), each expert's rows together."""
        rest = parts[0].shape[1:]
        split = [part.reshape(self.experts, -1, *rest) for part in parts]
        return torch.cat(split, 1).reshape(-1, *rest)

    def _columns(self, *parts: torch.Tensor) -> torch.Tensor:
        """(out, r0 experts) and (out, r1 experts) as (out, (r0 + r1) experts): PEFT counts experts fastest here."""
        out, rest = parts[0].shape[0], parts[0].shape[2:]
        split = [part.reshape(out, -1, self.experts, *rest) for part in parts]
        return torch.cat(split, 1).reshape(out, -1, *rest)


def pairs(model: nn.Module, trained: Mapping[str, torch.Tensor]) -> list[Pair]:
    """A and B of every layer of the model's trained adapter, as they are and as trained."""
    found = []
    for prefix, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for first, second in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if TRAINED in getattr(layer, first, {}):
                found.append(_pair(prefix, layer, (first, second), trained))
    return found


def _pair(prefix: str, layer: Any, kinds: tuple[str, str], trained: Mapping[str, torch.Tensor]) -> Pair:
    held: list[Any] = [getattr(layer, kind)[TRAINED] for kind in kinds]  # of an embedding the parameters themselves
    end = ".weight" if isinstance(held[0], nn.Module) else ""
    a, b = (one.weight if end else one for one in held)
    names = (f"{prefix}.{kinds[0]}.{TRAINED}{end}", f"{prefix}.{kinds[1]}.{TRAINED}{end}")
    before = (a.data.clone(), b.data.clone())
    return Pair(names, a, b, before, (trained[names[0]], trained[names[1]]), getattr(layer, "num_experts", 1))


class Settings:
    """PEFT's settings of an adapter, for one of both ranks and back. What was trained further has the ranks it had."""

    def __init__(self, config: PeftConfig) -> None:
        self.config: Any = config
        self.own: Any = copy.deepcopy(config)

    def set(self, *, joined: bool) -> None:
        """Twice the rank in every layer, at the same scale; or what the settings were."""
        scale = (math.sqrt(2) if self.own.use_rslora else 2) if joined else 1
        ranks = 2 if joined else 1
        self.config.r = ranks * self.own.r
        self.config.lora_alpha = scale * self.own.lora_alpha
        self.config.rank_pattern = {name: ranks * r for name, r in (self.own.rank_pattern or {}).items()}
        self.config.alpha_pattern = {name: scale * alpha for name, alpha in (self.own.alpha_pattern or {}).items()}
