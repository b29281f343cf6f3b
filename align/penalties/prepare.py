"""The penalties on weights of a stage, made from its keys before it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from align.penalties import kept
from align.penalties.kept import Tell
from align.penalties.keys import EWC, L2_SP, active
from align.penalties.quadratic import Penalty
from align.penalties.start import parts
from align.run_folder.records import Fisher, Ticket
from align.run_folder.stage_dir import StageDir


@dataclass(frozen=True)
class Prepared:
    """What keeps the weights of a stage near where they started.

    Attributes:
        fisher: of EWC, where there is one.
    """

    penalties: list[Penalty] = field(default_factory=list)
    fisher: Fisher | None = None


def penalties(
    model: nn.Module, here: StageDir, ticket: Ticket, tokenizer: Any, rows: Callable[[], list[Any]], tell: Tell
) -> Prepared:
    """The penalties that a ticket asks for, on the model as it came in.

    Args:
        model: with the stage's weights trainable, and none of them trained yet.
        rows: reads the canonical rows of `ewc.data`.

    Raises:
        AlignError: what is trained, or the rows, are not suited.
    """
    asked = active(ticket.keys)
    if not asked:
        return Prepared()
    start = parts(model)
    found, record = list[Penalty](), None
    if EWC in asked:
        diagonal, record = kept.diagonal(
            model, start, here, ticket, lambda: kept.examples(rows(), ticket, tokenizer), tell
        )
        found.append(Penalty(EWC, asked[EWC]["weight"], start, diagonal))
    if L2_SP in asked:
        found.append(Penalty(L2_SP, asked[L2_SP], start))
    return Prepared(found, record)
