"""What a run gained and lost, read from its forgetting matrix: the groups and the changes."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from align.forgetting.table import Cell, Effect, Forgetting, ProbeEntry

BASE: Final = "base"
ALL: Final = "all"
"""The mean over all skills, among the means of a stage."""
APART: Final = "apart"

Direction: TypeAlias = Literal["better", "worse"]


@dataclass(frozen=True)
class Group:
    """Probes that are read together; `replayed` groups answer whether replay protects what it does not cover."""

    key: str
    title: str
    probes: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """One capability at one stage against another."""

    stage: str
    name: str
    probe: ProbeEntry
    before: float | None
    after: float | None
    effect: Effect
    cell: Cell

    @property
    def size(self) -> float:
        """How large the change is, whatever its unit: a ratio counts as its distance from 1."""
        if self.effect.ratio is not None:
            return abs(self.effect.ratio - 1)
        return abs(self.effect.delta or 0.0)


def groups(forgetting: Forgetting) -> list[Group]:
    """Tasks, replayed skills, skills that are not replayed, text, and whatever kinds a newer align may add."""

    def key(probe: ProbeEntry) -> str:
        if probe.stands_apart:
            return APART
        if probe.kind != "skill" or probe.replayed is None:
            return probe.kind
        return "replayed" if probe.replayed else "not_replayed"

    titles = {
        "task": "The task",
        "replayed": "Skills in the replay",
        "not_replayed": "Skills not replayed",
        "skill": "Skills of the base",
        "text": "Text",
        "agreement": "Agreement with the base",
        APART: "Not judged",
    }
    found: dict[str, list[str]] = {title: [] for title in titles}
    for name, probe in forgetting.probes.items():
        found.setdefault(key(probe), []).append(name)
    return [Group(k, titles.get(k, k.capitalize()), tuple(names)) for k, names in found.items() if names]


def direction(effect: Effect, probe: ProbeEntry) -> Direction | None:
    """Better or worse if the whole 95 % interval says so, else None; a change that is neither has no direction."""
    if effect.ci95 is None or probe.stands_apart:
        return None
    low, high = effect.ci95
    neutral = 1.0 if effect.ratio is not None else 0.0
    if low is not None and low > neutral:
        return "better" if probe.higher_is_better else "worse"
    if high is not None and high < neutral:
        return "worse" if probe.higher_is_better else "better"
    return None


def ends(forgetting: Forgetting) -> list[str]:
    """The measured stages from which no other measured stage goes on: what the run hands to the user. What was rolled
    back is none of it."""
    left = forgetting.rolled_back
    measured = [stage for stage in forgetting.stages if stage not in (BASE, *left) and stage in forgetting.matrix]
    inner = {forgetting.parent.get(stage) for stage in measured}
    return [stage for stage in measured if stage not in inner]


def changes(forgetting: Forgetting, stage: str) -> list[Change]:
    """Every capability after `stage` against the base, in the order of the groups."""
    row, base = forgetting.matrix.get(stage, {}), forgetting.matrix.get(BASE, {})
    names = [name for group in groups(forgetting) for name in group.probes if name in row]
    return [
        Change(
            stage, name, forgetting.probes[name], base[name].score if name in base else None, row[name].score,
            row[name], row[name],
        )
        for name in names
    ]  # fmt: skip


def since_parent(forgetting: Forgetting, stage: str) -> list[Change]:
    """The capabilities that `stage` alone surely changed: against the policy that it was given."""
    row, before = forgetting.matrix.get(stage, {}), forgetting.matrix.get(forgetting.parent.get(stage, BASE), {})
    found = []
    for change in changes(forgetting, stage):
        effect = row[change.name].since_parent or (change.effect if forgetting.parent.get(stage) == BASE else None)
        if effect and direction(effect, change.probe):
            score = before[change.name].score if change.name in before else None
            found.append(Change(stage, change.name, change.probe, score, change.after, effect, change.cell))
    return sorted(found, key=lambda change: -change.size)


def learnt(forgetting: Forgetting, stage: str) -> list[Change]:
    """What is surely better than in the base, tasks first."""
    return [change for change in changes(forgetting, stage) if direction(change.effect, change.probe) == "better"]


def lost(forgetting: Forgetting, stage: str) -> list[Change]:
    """What is surely worse than in the base, what the verdict calls forgotten, and a perplexity without an end."""
    return [
        change
        for change in changes(forgetting, stage)
        if direction(change.effect, change.probe) == "worse"
        or change.cell.verdict == "FORGOT"
        or (change.after is None and change.before is not None)
    ]


def unclear(forgetting: Forgetting, stage: str) -> list[Change]:
    """What the items measured cannot decide."""
    return [change for change in changes(forgetting, stage) if change.cell.verdict == "UNCLEAR"]


def limit(forgetting: Forgetting, name: str) -> float | None:
    """What the verdicts of one probe were held against; None where it has none."""
    return forgetting.probes[name].limit if name in forgetting.probes else None
