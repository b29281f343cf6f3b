"""What a run gained and lost, read from its forgetting matrix: the groups, the changes, the one-sentence verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from align.report import numbers
from align.report.alarms import words
from align.report.schema import Cell, Effect, Forgetting, Probe, Report, StageRecord

BASE: Final = "base"
NAMED: Final = 3
"""How many capabilities a sentence names before it counts the rest."""

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
    probe: Probe
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

    def key(probe: Probe) -> str:
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
    }
    found: dict[str, list[str]] = {title: [] for title in titles}
    for name, probe in forgetting.probes.items():
        found.setdefault(key(probe), []).append(name)
    return [Group(k, titles.get(k, k.capitalize()), tuple(names)) for k, names in found.items() if names]


def direction(effect: Effect, probe: Probe) -> Direction | None:
    """Better or worse if the whole 95 % interval says so, else None."""
    if effect.ci95 is None:
        return None
    low, high = effect.ci95
    neutral = 1.0 if effect.ratio is not None else 0.0
    if low is not None and low > neutral:
        return "better" if probe.higher_is_better else "worse"
    if high is not None and high < neutral:
        return "worse" if probe.higher_is_better else "better"
    return None


def ends(forgetting: Forgetting) -> list[str]:
    """The measured stages from which no other measured stage goes on: what the run hands to the user."""
    measured = [stage for stage in forgetting.stages if stage != BASE and stage in forgetting.matrix]
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
    """The tolerated drop of one probe: of all, or its own, or that of all the others."""
    value = forgetting.thresholds.get("max_drop")
    if isinstance(value, dict):
        value = value.get(name, value.get("default"))
    return float(value) if isinstance(value, int | float) else None


def tolerated(forgetting: Forgetting) -> str:
    """The drop that the recipe tolerates, in words."""
    value = forgetting.thresholds.get("max_drop")
    return f"the tolerated drop of {value:g}" if isinstance(value, int | float) else "the tolerated drop"


def verdict_line(report: Report) -> str:
    """One sentence: what the run gained, what it forgot, and how sure that is."""
    forgetting = report.forgetting
    failed = [stage.id for stage in report.stages if stage.entry.status == "failed"]
    tail = "".join(map(_alarms, report.stages)) + (f"; stage {_join(failed)} failed" if failed else "")
    if forgetting is None or not forgetting.matrix:
        return f"Nothing has been measured yet{tail}."
    stages = ends(forgetting)
    if not stages:
        n = len(forgetting.matrix.get(BASE, {}))
        return f"Only the base has been measured ({n} capabilities), and no trained stage yet{tail}."
    parts = "; ".join(_stage_sentence(forgetting, stage) for stage in stages)
    return f"{parts[0].upper()}{parts[1:]} (95 % intervals, the same held-out items before and after){tail}."


def _stage_sentence(forgetting: Forgetting, stage: str) -> str:
    gained = [f"{c.name} ({_from_to(c)})" for c in learnt(forgetting, stage)]
    forgot = sorted((c for c in lost(forgetting, stage) if c.cell.verdict == "FORGOT"), key=lambda c: -c.size)
    named = [f"{c.name} ({numbers.change(c.effect) or _from_to(c)})" for c in forgot]
    mild = len(lost(forgetting, stage)) - len(forgot)
    doubtful = len(unclear(forgetting, stage))
    total = len(forgetting.matrix[stage])
    losses = f"forgot {_join(named)}, beyond {tolerated(forgetting)}" if forgot else "forgot nothing for certain"
    if mild and forgot:
        losses += f"; {mild} more fell"
    elif mild:
        losses = f"{losses} beyond {tolerated(forgetting)}, though {mild} of {total} capabilities fell"
    judged = sum(cell.verdict is not None for cell in forgetting.matrix[stage].values())
    of = str(judged) if judged == total else f"{judged} judged"
    sure = f"{doubtful} of {of} are UNCLEAR" if doubtful else f"all {of} capabilities are decided"
    sure = sure if judged else "none is judged"
    return f"after {stage} the model gained {_join(gained) or 'nothing for certain'} and {losses}; {sure}"


def _alarms(stage: StageRecord) -> str:
    """The alarms of a stage's rollouts as the end of a sentence."""
    found = [f"{words(alarm.name)} (rollout {alarm.rollout})" for one in stage.rollouts for alarm in one.alarms]
    return f"; {stage.id} raised {'an alarm' if len(found) == 1 else 'alarms'}: {_join(found)}" if found else ""


def _from_to(change: Change) -> str:
    return f"{numbers.score(change.before, change.probe)} to {numbers.score(change.after, change.probe)}"


def _join(names: Sequence[str]) -> str:
    shown = list(names[:NAMED])
    if len(names) > NAMED:
        shown.append(f"{len(names) - NAMED} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
