"""What stands in the matrix beside score, change and verdict: what was retained, how sure the choices are, and what
holds over all probes together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from align.forgetting.judgement import MEAN, Finding
from align.forgetting.measurements import Measurement, Split, compare, paired
from align.forgetting.rounding import number
from align.forgetting.statistics import (
    FAMILY_ERROR,
    Change,
    Undefined,
    average_forgetting,
    best_rows,
    holm,
    mean_change,
    p_beyond,
    paired_binary,
    retention,
)
from align.forgetting.table import Family, Interval, Kept, NoValue, RightChoice


def kept(base: Measurement, after: Measurement, split: Split, probes: Sequence[str]) -> Kept | NoValue | None:
    """What of the right answers of the base is still right, over all items of these probes; None of a perplexity."""
    if any(base.probes[probe].metric != "accuracy" for probe in probes):
        return None
    pairs = [pair for probe in probes for pair in paired(base, after, split, probe)]
    found = retention((before.value, later.value) for before, later in pairs)
    if isinstance(found, Undefined):
        return NoValue(undefined=found.why)
    ci95 = (number(found.low), number(found.high))
    return Kept(share=number(found.share), ci95=ci95, kept=found.kept, right=found.right)


def right_choice(base: Measurement, after: Measurement, split: Split, probe: str) -> RightChoice | None:
    """The probability of the right choice before and after; None where the probe has no choices, or an older run did
    not write it."""
    pairs = [(before.probability, now.probability) for before, now in paired(base, after, split, probe)]
    both = [(before, now) for before, now in pairs if before is not None and now is not None]
    if len(both) < len(pairs):
        return None
    before, now = [pair[0] for pair in both], [pair[1] for pair in both]
    change = paired_binary(before, now)
    return RightChoice(
        before=number(math.fsum(before) / len(both)),
        after=number(math.fsum(now) / len(both)),
        delta=number(change.delta),
        ci95=(number(change.low), number(change.high)),
        n=len(both),
    )


def family(findings: Mapping[str, Finding]) -> Family | None:
    """Which probes are surely past their limits, all of them looked at together; None where there is one at most."""
    probes = {name: finding for name, finding in findings.items() if name != MEAN}
    if len(probes) < 2:
        return None
    p_values = {name: p_beyond(finding.change, finding.limit) for name, finding in probes.items()}
    return Family(judged=len(probes), beyond=holm(p_values), error=FAMILY_ERROR)


def forgetting_of(
    history: Sequence[str], measurements: Mapping[str, Measurement], split: Split, skills: Sequence[str]
) -> tuple[float | Undefined, Interval | None]:
    """The average forgetting after the last row, and its 95 % interval.

    Where several rows come before, the best of each skill is chosen by the other half of the items; without another
    half by the same ones, and then there is no interval, because chance in the choice is not in it.

    The interval is that of the mean of the paired changes from each skill's best row to the last.
    """
    other: Split = "gate" if split == "report" else "report"
    held_out = all(measurements[row].has(other, probe) for row in history for probe in skills)
    scores = {row: {probe: measurements[row].score(split, probe) for probe in skills} for row in history}
    chosen_by = (
        {row: {probe: measurements[row].score(other, probe) for probe in skills} for row in history}
        if held_out
        else scores
    )
    value = average_forgetting(scores, history, chosen_by)
    if isinstance(value, Undefined) or not (held_out or len(history) == 2):
        return value, None
    best = best_rows(chosen_by, history)
    changes = [compare(measurements[best[probe]], measurements[history[-1]], split, probe) for probe in skills]
    mean = mean_change([change for change in changes if isinstance(change, Change)])
    return value, (number(-mean.high), number(-mean.low))
