"""forgetting.json of a run, from what has been measured so far. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.forgetting import matrix, measurements
from align.forgetting.distances import Drift, TaskKl
from align.recipe.pipeline import BASE
from align.recipe.plan import Loaded
from align.run_folder import files, handed_on, reading
from align.run_folder.decisions import Decision
from align.run_folder.paths import RunDir
from align.run_folder.records import Ticket


def tabulate(run: RunDir, order: Sequence[str], tickets: Mapping[str, Ticket], loaded: Loaded) -> None:
    """Write forgetting.json; without a measurement of the base remove it: it is of an older recipe.

    Args:
        order: the stages of the run.

    Raises:
        AlignError: a measurement is damaged, or two of them hold different items.
    """
    if not (run.base_measurements / "summary.json").is_file():
        run.forgetting.unlink(missing_ok=True)
        return
    rows = [id for id in order if _measured(run, id, tickets[id])]
    dirs = {id: handed_on.folder(run.stage(id)) for id in rows}
    found = {id: measurements.load(here.measurements) for id, here in dirs.items()}
    takes = {plan.id: plan.policy for plan in loaded.stages}
    parents = {id: handed_on.source(run, policy, takes) for id, policy in takes.items()}
    left = tuple(id for id in rows if handed_on.rolled_back(run.stage(id)))
    base = measurements.load(run.base_measurements)
    distances = {
        id: (reading.optional(here.task_kl, TaskKl), reading.optional(here.drift, Drift)) for id, here in dirs.items()
    }
    table = matrix.build([BASE, *rows], parents, {BASE: base, **found}, loaded.recipe.forgetting, distances)
    decisions = {id: reading.whole(run.stage(id).decision, Decision) for id in rows}
    shares = {id: found.share for id, found in decisions.items() if found is not None and found.share is not None}
    acted = {name: value for name, value in (("rolled_back", left), ("interpolated", shares)) if value}
    files.write_json(run.forgetting, table.but(**acted).written())


def _measured(run: RunDir, id: str, ticket: Ticket) -> bool:
    """Whether a stage's row can stand beside the base's: it was asked the same."""
    here = run.stage(id)
    outcome = reading.outcome(here)
    asked_the_same = outcome is not None and outcome.probes_sha256 == ticket.probes_sha256
    return asked_the_same and (here.measurements / "summary.json").is_file()
