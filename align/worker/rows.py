"""The rows of a stage: those of the task, and the replayed ones among them or beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from align.data import mixing, replay
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import ReplayPart, Rows, Ticket
from align.stage.rewrite_keys import Rewrite
from align.written import rewriting
from align.written.keep import Shelf

if TYPE_CHECKING:
    from align.stage.job import Job

REWRITE: Final = "rewrite"  # the key of a stage, and what its rows are kept as

Row = dict[str, Any]


@dataclass(frozen=True)
class Learnt:
    """What a stage learns.

    Attributes:
        rows, groups: of the task, then those that are mixed in; 0 for a row of the task, for a replayed one the number
            of its source from 1.
        replay: the sources of what is replayed beside the rows.
        data: how many rows there are of each kind, as the outcome says it.
    """

    rows: list[Row]
    groups: list[int]
    replay: list[replay.Source]
    data: dict[str, Any]


def read_rows(run: RunDir, rows: Rows) -> list[Row]:
    """The canonical rows that the parent checked."""
    with (run.root / rows.path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def learnt(
    run: RunDir, ticket: Ticket, task: list[Row], *, mixes: bool, written: Sequence[Row] | None = None
) -> Learnt:
    """The rows of the task and of the replay.

    Args:
        mixes: whether the stage mixes replayed rows among its own, instead of learning them by a term of its loss.
        written: rows to replay that the policy wrote, where the ticket asks for some. None: it has not yet, and nothing
            is replayed until then.

    Raises:
        AlignError: a source has no rows.
    """
    waits = ticket.writing is not None and written is None
    sources = [] if waits else _sources(run, ticket, written or ())
    data: dict[str, Any] = {"rows": len(task), "replay_rows": 0, "replay_ratio": 0.0, "replay_sources": []}
    if not (sources and mixes):
        return Learnt(task, [0] * len(task), sources, data)
    count = mixing.replay_rows(len(task), ticket.replay_ratio)
    drawn, of = replay.draw(sources, count, ticket.seed)
    data |= replay.counted(sources, [of.count(number) for number in range(len(sources))], len(task))
    return Learnt([*task, *drawn], [0] * len(task) + [1 + number for number in of], [], data)


def recall(job: Job) -> None:
    """Give the job of a stage that is trained already the rows that it was trained on, where its policy rewrote some:
    what is measured on the prompts of the task is then measured on the same ones."""
    rewrite, own = getattr(job.keys, REWRITE, None), job.groups.count(0)
    shelf, key = shelf_of(job, REWRITE)
    own_key = files.digest([job.ticket.fingerprint, REWRITE])  # as an older align has it of a later attempt
    if not isinstance(rewrite, Rewrite) or not (shelf.kept(key) or shelf.kept(own_key)):
        return
    task = rewriting.apply(job.rows[:own], shelf.read(), drop=rewrite.otherwise == "drop")
    job.rows, job.groups = [*task, *job.rows[own:]], [0] * len(task) + job.groups[own:]


def shelf_of(job: Job, name: str) -> tuple[Shelf, str]:
    """Where a stage keeps what its policy writes, and the key that it is kept under, in all attempts at the stage."""
    return Shelf(job.dir.written, name), files.digest([job.ticket.made_from, name])


def _sources(run: RunDir, ticket: Ticket, written: Sequence[Row]) -> list[replay.Source]:
    """The rows that are replayed, by where they come from."""
    if ticket.replay_ratio == 0:
        return []
    table = iter(read_rows(run, ticket.replay) if ticket.replay else ())
    whole = []  # of a ticket that names no sources: all is one
    if ticket.replay or ticket.writing:
        count = ticket.replay.count if ticket.replay else 0
        whole = [ReplayPart(name="replay", weight=1.0, count=count, written=ticket.writing is not None)]
    return [
        replay.Source(part.name, part.weight, written if part.written else list(islice(table, part.count)))
        for part in ticket.replay_sources or whole
    ]
