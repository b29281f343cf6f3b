"""The rows of a stage: those of the task, and the replayed ones among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from align.data import mixing
from align.run_folder.paths import RunDir
from align.run_folder.records import Rows, Ticket

Row = dict[str, Any]


def read_rows(run: RunDir, rows: Rows) -> list[Row]:
    """The canonical rows that the parent checked."""
    with (run.root / rows.path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def mixed(run: RunDir, ticket: Ticket, task: list[Row], written: Sequence[Row] = ()) -> tuple[list[Row], list[int]]:
    """The rows of the task with the replayed ones after them, and the group of each: 0 of the task, 1 replayed.

    Args:
        written: rows to replay that the policy wrote, where the ticket asks for some; none as long as there are none.
    """
    buffer = written if ticket.writing is not None else read_rows(run, ticket.replay) if ticket.replay else ()
    count = mixing.replay_rows(len(task), ticket.replay_ratio) if buffer and ticket.replay_ratio > 0 else 0
    return [*task, *mixing.draw(buffer, count, ticket.seed)], [0] * len(task) + [1] * count


def figures(groups: Sequence[int], held: int) -> dict[str, Any]:
    """How many rows there are of each kind."""
    replayed = sum(groups)
    return {
        "rows": len(groups) - replayed,
        "replay_rows": replayed,
        "replay_ratio": replayed / len(groups) if groups else 0.0,
        "eval_rows": held,
    }
