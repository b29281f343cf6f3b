"""What all stages that sample answers declare alike. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from align.data.formats import Kind
from align.recipe import verdicts
from align.run_folder.records import Ticket

ROWS: Final[frozenset[Kind]] = frozenset({"prompt", "chat", "prompt_completion", "preference"})
"""Of each the prompt is taken."""

RESERVED: Final = verdicts.ONLINE
"""Training arguments that a recipe may not give, and what to do instead."""


def defaults(**more: Any) -> dict[str, dict[str, Any]]:
    """Training arguments where such stages depart from TRL's defaults; `more` for both families. The learning rate is
    constant after the warm-up, where one is asked for."""
    common = {"steps_per_generation": 4, "max_completion_length": 128, "lr_scheduler_type": "constant_with_warmup"}
    return {"all": {**more, **common}, "full": {"learning_rate": 1e-6}, "adapter": {"learning_rate": 1e-5}}


def preload(ticket: Ticket, model: Any, run: Path) -> Any:
    """Put the adapters of the reference and of the reward models under the policy's own."""
    from align.rl import shared_base

    return shared_base.put(ticket, model, run)
