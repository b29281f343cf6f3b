"""The scores of several runs and their differences from the first, item by item."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from align.compare.sides import Side
from align.compare.table import Difference, Row, Table, Value
from align.forgetting.judgement import MEAN, cannot_show, is_skill, judge
from align.forgetting.measurements import Measurement, Split, compare
from align.forgetting.rounding import number
from align.forgetting.statistics import Change, PerplexityChange, Verdict, mean_change
from align.forgetting.table import ProbeEntry
from align.report import findings

MEAN_NAME = "mean of skills"
Verdicts = Mapping[str, Verdict]


def split_of(sides: Sequence[Side]) -> Split:
    """The half of the items that is shown: the report's, which no gate has looked at, where there is one."""
    return "report" if any(split == "report" for split, _ in sides[0].base.items) else "gate"


def left_out(sides: Sequence[Side], split: Split) -> dict[str, str]:
    """Probes that are not compared, and why."""
    found = {}
    for name in sides[0].base.probes:
        silent = next((f"{why} ({side.label})" for side in sides if (why := cannot_show(side.base, name))), None)
        if silent or not sides[0].base.has(split, name):
            found[name] = silent or f"it has no {split} items"
    return found


def table(sides: Sequence[Side], stages: Sequence[str], split: Split, without: Mapping[str, str]) -> Table:
    """The policies after one stage of each run.

    Args:
        stages: of each run.
        without: probes that are not compared.
    """
    measured = [side.stages[stage] for side, stage in zip(sides, stages, strict=True)]
    verdicts: list[Verdicts] = [
        {name: found.verdict for name, found in judge(side.base, after, split, side.limits).items()}
        for side, after in zip(sides, measured, strict=True)
    ]
    probes = [name for name in sides[0].base.probes if name not in without]
    skills = [name for name in probes if is_skill(sides[0].base.probes[name])]
    return Table(
        stages=tuple(stages),
        rows=tuple(_row(name, measured, split, verdicts) for name in probes),
        mean=_mean(skills, measured, split, verdicts) if skills else None,
    )


def difference(first: Measurement, other: Measurement, split: Split, name: str) -> Difference:
    """One probe of two policies."""
    change = compare(first, other, split, name)
    found = Difference(
        delta=number(other.score(split, name) - first.score(split, name)),
        ci95=(number(change.low), number(change.high)),
        p_value=number(change.p_value),
        ratio=number(change.ratio) if isinstance(change, PerplexityChange) else None,
        lost=change.lost if isinstance(change, Change) else None,
        gained=change.gained if isinstance(change, Change) else None,
    )
    info = first.probes[name]
    entry = ProbeEntry(metric=info.metric, higher_is_better=info.higher_is_better, kind=info.kind)
    return found.but(direction=findings.direction(found, entry))


def mean_difference(first: Measurement, other: Measurement, split: Split, skills: Sequence[str]) -> Difference:
    """The unweighted mean over the skills of two policies."""
    changes = [compare(first, other, split, name) for name in skills]
    change = mean_change([each for each in changes if isinstance(each, Change)])
    found = Difference(
        delta=number(change.delta),
        ci95=(number(change.low), number(change.high)),
        p_value=number(change.p_value),
        lost=change.lost,
        gained=change.gained,
    )
    return found.but(direction=findings.direction(found, ProbeEntry()))


def _row(name: str, measured: Sequence[Measurement], split: Split, verdicts: Sequence[Verdicts]) -> Row:
    info = measured[0].probes[name]
    return Row(
        name=name,
        kind=info.kind,
        metric=info.metric,
        higher_is_better=info.higher_is_better,
        n=len(measured[0].items[split, name]),
        values=tuple(
            Value(score=number(one.score(split, name)), verdict=judged.get(name))
            for one, judged in zip(measured, verdicts, strict=True)
        ),
        differences=tuple(difference(measured[0], other, split, name) for other in measured[1:]),
    )


def _mean(skills: Sequence[str], measured: Sequence[Measurement], split: Split, verdicts: Sequence[Verdicts]) -> Row:
    means = [math.fsum(one.score(split, name) for name in skills) / len(skills) for one in measured]
    return Row(
        name=MEAN_NAME,
        kind="mean",
        n=sum(len(measured[0].items[split, name]) for name in skills),
        values=tuple(
            Value(score=number(mean), verdict=judged.get(MEAN)) for mean, judged in zip(means, verdicts, strict=True)
        ),
        differences=tuple(mean_difference(measured[0], other, split, skills) for other in measured[1:]),
    )
