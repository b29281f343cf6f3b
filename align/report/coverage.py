"""What was replayed, which capabilities it covers, and what became of those that it covers and of the others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from align.forgetting.table import Effect, Forgetting
from align.lab.data import COVERING, NOT_REPLAYED
from align.report import findings, numbers
from align.report.findings import Change
from align.report.schema import Report

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


@dataclass(frozen=True)
class Buffer:
    """One source of a stage's replay: its share of the replayed rows, how many an epoch has of its rows, and what it is
    known to cover."""

    stage: str
    source: str
    share: str
    replayed: str
    covers: str


def buffers(report: Report) -> Iterable[Buffer]:
    """One for each source of each stage that replayed rows; none of runs of an older align, which did not say."""
    for stage in report.stages:
        parts = stage.outcome.data.get("replay_sources") if stage.outcome else None
        total = sum(part["replayed"] for part in parts or ())
        for part in parts or ():
            count, rows = part["replayed"], part["rows"]
            share = f"{count / total:.1%}" if total else numbers.NONE
            seen = f"{count:,} an epoch, of {rows:,} rows"
            if rows and count > rows:
                seen += f", each {count / rows:.1f} times"
            yield Buffer(stage.id, part["name"], share, seen, _known(part["name"]))


def _known(source: str) -> str:
    """What a source covers, as far as align knows."""
    if source == COVERING:
        return f"the skills of the lab but {' and '.join(NOT_REPLAYED)}"
    if source.startswith("stage "):
        return f"the task of {source.removeprefix('stage ')}"
    return "not known: what its rows show, and nothing else"


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
