"""The forgetting matrix: every capability after every stage, against the base and against the stage before.

Numbers have six significant digits; a number that does not exist is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from align.errors import AlignError
from align.forgetting import details
from align.forgetting.distances import Drift, TaskKl
from align.forgetting.judgement import MEAN, Finding, cannot_show, is_skill, judge
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import Measurement, Split, compare
from align.forgetting.rounding import number
from align.forgetting.statistics import Change, PerplexityChange, Undefined, backward_transfer, mean_change
from align.forgetting.table import ALL, BASE, Cell, Effect, Figure, Forgetting, NoValue, ProbeEntry
from align.run_folder.records import FORMAT

MODULES_SHOWN = 10  # of those that moved; all stand in the drift.json of their stage


def build(
    order: Sequence[str],
    parents: Mapping[str, str],
    measurements: Mapping[str, Measurement],
    keys: ForgettingKeys,
    distances: Mapping[str, tuple[TaskKl | None, Drift | None]] | None = None,
) -> Forgetting:
    """The matrix of a run, on report items; on gate items where the base has no report items.

    Args:
        order: the stages in the order of training, "base" first.
        parents: stage -> the stage whose policy it took, "base" for the first ones.
        measurements: stage -> what was measured after it; a stage without a policy is absent.
        keys: the limits for the verdicts.
        distances: how far each stage is from the base, as far as it was measured.

    Raises:
        AlignError: the base was not measured, two measurements hold different items, or a limit names no probe.
    """
    if BASE not in measurements:
        raise AlignError("the base was not measured, so nothing can be compared with it", "run `align run` again")
    base = measurements[BASE]
    keys.check_names(base.probes)
    split: Split = "gate" if base.items and all(held == "gate" for held, _ in base.items) else "report"
    silent = {probe: why for probe in base.probes if (why := cannot_show(base, probe)) is not None}
    learnt = {probe for probe in silent if any(cannot_show(each, probe) is None for each in measurements.values())}
    shown = [probe for probe in base.probes if base.has(split, probe) and probe not in silent.keys() - learnt]
    probes = {probe: _entry(probe, split, measurements, keys) for probe in shown}
    stages = [stage for stage in order if stage in measurements]
    history = {stage: _history(stage, parents, measurements) for stage in stages}
    judged = {stage: judge(base, measurements[stage], split, keys) for stage in stages if stage != BASE}
    matrix = {
        stage: {probe: _cell(history[stage], measurements, split, probe, judged) for probe in probes}
        for stage in stages
    }
    groups = _groups([probe for probe in probes if is_skill(base.probes[probe]) and probe not in silent], probes)
    mean = {
        stage: _means(base, measurements[stage], split, groups, judged.get(stage, {}).get(MEAN)) for stage in stages
    }
    families = {stage: found for stage, findings in judged.items() if (found := details.family(findings)) is not None}
    return Forgetting(
        format=FORMAT,
        split=split,
        stages=tuple(stages),
        parent={stage: history[stage][-2] for stage in stages if stage != BASE},
        no_row={stage: "it hands on no policy, so there is nothing to probe" for stage in order if stage not in stages},
        probes=probes,
        left_out={probe: silent.get(probe, f"it has no {split} items") for probe in base.probes if probe not in probes},
        matrix=matrix,
        mean=mean,
        **_transfer(history, measurements, split, mean, groups.get(ALL, [])),
        family=families,
        **_distances(distances or {}, keys),
        thresholds=keys.thresholds(),
    )


def _transfer(
    history: Mapping[str, list[str]],
    measurements: Mapping[str, Measurement],
    split: Split,
    mean: Mapping[str, Mapping[str, Cell]],
    skills: Sequence[str],
) -> dict[str, Any]:
    """Backward transfer and average forgetting of every row, with their intervals."""
    scores = {stage: {probe: measurements[stage].score(split, probe) for probe in skills} for stage in history}
    lost = {stage: details.forgetting_of(line, measurements, split, skills) for stage, line in history.items()}
    # the base has every skill, so that this is the mean change of the skills
    means = {stage: mean[stage][ALL].ci95 for stage in history if ALL in mean[stage]}
    return {
        "backward_transfer": {stage: _value(backward_transfer(scores, line)) for stage, line in history.items()},
        "backward_transfer_ci95": {stage: interval for stage, interval in means.items() if interval is not None},
        "average_forgetting": {stage: _value(value) for stage, (value, _) in lost.items()},
        "average_forgetting_ci95": {stage: interval for stage, (_, interval) in lost.items() if interval is not None},
    }


def _distances(
    found: Mapping[str, tuple[TaskKl | None, Drift | None]], keys: ForgettingKeys
) -> dict[str, dict[str, TaskKl | Drift]]:
    """The KL with its verdict, and the drift without its long tail of modules."""
    drifts = {stage: drift.but(modules=drift.modules[:MODULES_SHOWN]) for stage, (_, drift) in found.items() if drift}
    return {"task_kl": {s: kl.against(keys.max_kl) for s, (kl, _) in found.items() if kl}, "drift": {**drifts}}


def _means(
    base: Measurement, after: Measurement, split: Split, groups: Mapping[str, list[str]], judged: Finding | None
) -> dict[str, Cell]:
    """The mean of each group of skills after a stage; only that of all skills is judged."""
    return {
        group: _mean(base, after, split, skills, judged if group == ALL else None) for group, skills in groups.items()
    }


def _history(stage: str, parents: Mapping[str, str], measurements: Mapping[str, Measurement]) -> list[str]:
    """The rows from the base to the stage along the policies that it stands on."""
    line = [stage]
    while line[0] != BASE:
        line.insert(0, parents.get(line[0], BASE))
    return [step for step in line if step in measurements]


def _entry(probe: str, split: Split, measurements: Mapping[str, Measurement], keys: ForgettingKeys) -> ProbeEntry:
    base = measurements[BASE]
    info = base.probes[probe]
    known = [measured.probes[probe].replayed for measured in measurements.values() if probe in measured.probes]
    return ProbeEntry(
        metric=info.metric,
        higher_is_better=info.higher_is_better,
        kind=info.kind,
        replayed=True if True in known else False if False in known else None,
        n=len(base.items[split, probe]),
        limit=keys.limit(probe, info),
    )


def _cell(
    history: Sequence[str],
    measurements: Mapping[str, Measurement],
    split: Split,
    probe: str,
    judged: Mapping[str, Mapping[str, Finding]],
) -> Cell:
    base, after = measurements[BASE], measurements[history[-1]]
    if after is base:
        return Cell(score=number(base.score(split, probe)), n=len(base.items[split, probe]))
    change = compare(base, after, split, probe)
    finding = judged[history[-1]].get(probe)
    return Cell(
        score=number(after.score(split, probe)),
        n=change.n,
        **_given(_difference(base, after, split, probe)),
        verdict=finding.verdict if finding else None,
        lost=change.lost if isinstance(change, Change) else None,
        gained=change.gained if isinstance(change, Change) else None,
        items_to_decide=finding.needed() if finding else None,
        since_parent=_difference(measurements[history[-2]], after, split, probe),
        retention=details.kept(base, after, split, [probe]),
        right_choice=details.right_choice(base, after, split, probe),
    )


def _difference(before: Measurement, after: Measurement, split: Split, probe: str) -> Effect:
    change = compare(before, after, split, probe)
    delta = after.score(split, probe) - before.score(split, probe)
    found = Effect(delta=number(delta), ci95=(number(change.low), number(change.high)), p_value=number(change.p_value))
    return found.but(ratio=number(change.ratio)) if isinstance(change, PerplexityChange) else found


def _given(effect: Effect) -> dict[str, Any]:
    """What was given of a change: a difference has no ratio, not even an empty one."""
    return {name: getattr(effect, name) for name in effect.model_fields_set}


def _groups(skills: list[str], entries: Mapping[str, ProbeEntry]) -> dict[str, list[str]]:
    groups = {
        ALL: skills,
        "replayed": [probe for probe in skills if entries[probe].replayed is True],
        "not_replayed": [probe for probe in skills if entries[probe].replayed is False],
    }
    return {group: members for group, members in groups.items() if members}


def _mean(base: Measurement, after: Measurement, split: Split, skills: list[str], finding: Finding | None) -> Cell:
    score = math.fsum(after.score(split, probe) for probe in skills) / len(skills)
    items = sum(len(base.items[split, probe]) for probe in skills)
    if after is base:
        return Cell(score=number(score), probes=len(skills), n=items)
    changes = [compare(base, after, split, probe) for probe in skills]
    change = mean_change([each for each in changes if isinstance(each, Change)])
    return Cell(
        score=number(score),
        probes=len(skills),
        n=items,
        delta=number(change.delta),
        ci95=(number(change.low), number(change.high)),
        p_value=number(change.p_value),
        verdict=finding.verdict if finding else None,
        retention=details.kept(base, after, split, skills),
    )


def _value(measure: float | Undefined) -> Figure:
    return NoValue(undefined=measure.why) if isinstance(measure, Undefined) else number(measure)
