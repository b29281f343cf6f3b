"""What a stage adds to its trainer's loss: text of a replay, a penalty on weights, a distance to another policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Term:
    """One named addition to a loss.

    Attributes:
        name: it is logged as `loss/<name>`, without its weight.
        loss: of the bare model, for one micro-batch of this process: the mean over rows or tokens of its own choice.
            Over the micro-batches of an update, and over processes, the mean of all is taken. None, in all processes
            alike: nothing is added.
        weight: of the term in this micro-batch.
    """

    name: str
    loss: Callable[[nn.Module], torch.Tensor | None]
    weight: Callable[[], float]
