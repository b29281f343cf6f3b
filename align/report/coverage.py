"""Which capabilities the replayed rows cover, and what became of those that they cover and of the others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from align.forgetting.table import Effect, Forgetting
from align.report import findings, numbers
from align.report.findings import Change

SIDES: Final = {True: ("In the replay", "replayed"), False: ("Not replayed", "not_replayed")}


@dataclass(frozen=True)
class Side:
    """The skills that are covered, or that are not: their names, the change of their mean and its interval, how many
    were forgotten and the one that fell most."""

    title: str
    names: tuple[str, ...]
    change: str
    interval: str
    direction: str
    forgot: str
    worst: str


@dataclass(frozen=True)
class Coverage:
    """After one stage."""

    stage: str
    sides: tuple[Side, ...]


def coverage(forgetting: Forgetting) -> Iterable[Coverage]:
    """One for each policy that the run hands on; none where nothing says what is replayed."""
    if not any(probe.replayed for probe in forgetting.probes.values()):
        return
    for stage in findings.ends(forgetting):
        changes = [c for c in findings.changes(forgetting, stage) if c.probe.kind == "skill"]
        sides = [_side(forgetting, stage, state, changes) for state in SIDES]
        yield Coverage(stage, tuple(side for side in sides if side.names))


def _side(forgetting: Forgetting, stage: str, state: bool, changes: Sequence[Change]) -> Side:
    title, key = SIDES[state]
    mine = [change for change in changes if change.probe.replayed is state]
    mean: Effect = forgetting.mean.get(stage, {}).get(key) or Effect()
    worst = min(mine, key=lambda change: change.effect.delta or 0.0, default=None)
    forgot = sum(change.cell.verdict == "FORGOT" for change in mine)
    return Side(
        title,
        tuple(change.name for change in mine),
        numbers.change(mean) or numbers.NONE,
        numbers.interval(mean),
        _direction(mean),
        f"{forgot} of {len(mine)}",
        f"{worst.name} {numbers.change(worst.effect)}" if worst else "",
    )


def _direction(mean: Effect) -> str:
    low, high = mean.ci95 or (None, None)
    if high is not None and high < 0:
        return "worse"
    return "better" if low is not None and low > 0 else ""
