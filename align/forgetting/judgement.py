"""What a change says against its limit: the one place from which the gate, the matrix and every page take verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.forgetting.measurements import Measurement, ProbeInfo, Split, compare
from align.forgetting.statistics import Change, PerplexityChange, Verdict, items_to_decide, mean_change, verdict, wilson

if TYPE_CHECKING:
    from align.forgetting.keys import ForgettingKeys

MEAN = "mean of the skills"
SILENT = "cannot show forgetting"  # of a probe at which the base guesses


@dataclass(frozen=True)
class Finding:
    """One limit held against one change."""

    probe: str
    before: float
    after: float
    change: Change | PerplexityChange
    limit: float

    @property
    def verdict(self) -> Verdict:
        return verdict(self.change, self.limit)

    def needed(self) -> int | None:
        """How many items would settle an UNCLEAR verdict; None for another, or where no number would do."""
        return items_to_decide(self.change, self.limit) if self.verdict == "UNCLEAR" else None

    def sentence(self) -> str:
        """The figures, and what they say against the limit."""
        change = self.change
        if isinstance(change, PerplexityChange):
            if math.isnan(change.ratio):
                return f"{self.probe}: the base itself has no finite perplexity here, so nothing can be compared"
            if math.isinf(change.ratio):
                return f"{self.probe}: {self.before:.3g} -> no finite perplexity any more: the model has diverged"
            size = f"x{change.ratio:.3g}, 95 % interval x{change.low:.3g} to x{change.high:.3g}, {change.n} items"
            limit = f"x{self.limit:.3g}"
        else:
            size = f"{change.delta:+.3f}, 95 % interval {change.low:+.3f} to {change.high:+.3f}, {change.n} items"
            limit = f"a drop of {self.limit:.3g}"
        figures = f"{self.probe}: {self.before:.3g} -> {self.after:.3g} ({size})"
        if self.verdict == "FORGOT":
            return f"{figures} is beyond the limit, {limit}"
        if self.verdict == "OK":
            return f"{figures} is within the limit, {limit}"
        needed = self.needed()
        how = (
            f"about {needed} items would decide" if needed else "exactly on the limit, no number of items would decide"
        )
        return f"{figures} may or may not be beyond the limit, {limit}: {how}"


def judge(base: Measurement, after: Measurement, split: Split, keys: ForgettingKeys) -> dict[str, Finding]:
    """Every limit of the recipe held against what changed from the base, on one half of the items.

    Returns:
        by probe, of those that have a limit and items in this half, and at which the base is better than guessing; and
        under `MEAN` the mean over the skills.

    Raises:
        AlignError: the two measurements hold different items.
    """
    found: dict[str, Finding] = {}
    for probe, info in base.probes.items():
        limit = keys.limit(probe, info)
        if limit is not None and base.has(split, probe) and cannot_show(base, probe) is None:
            change = compare(base, after, split, probe)
            found[probe] = Finding(probe, base.score(split, probe), after.score(split, probe), change, limit)
    skills = [finding for probe, finding in found.items() if is_skill(base.probes[probe])]
    if skills:
        before = math.fsum(finding.before for finding in skills) / len(skills)
        later = math.fsum(finding.after for finding in skills) / len(skills)
        mean = mean_change([finding.change for finding in skills if isinstance(finding.change, Change)])
        found[MEAN] = Finding(MEAN, before, later, mean, keys.max_mean_drop)
    return found


def cannot_show(base: Measurement, probe: str) -> str | None:
    """Why a probe cannot show forgetting: the base is not surely better at it than guessing; None where it can.

    By the 95 % interval of its accuracy over all items, of both halves.
    """
    chance = base.probes[probe].chance
    if chance is None:
        return None
    scores = [item.value for half in ("gate", "report") for item in base.items.get((half, probe), {}).values()]
    accuracy = math.fsum(scores) / len(scores)
    if accuracy > chance and wilson(accuracy, len(scores))[0] > chance:
        return None
    shares = f"the base gets {accuracy:.0%} of {len(scores)} items right, guessing gets {chance:.0%}"
    return f"it {SILENT}, since {shares}"


def is_skill(info: ProbeInfo) -> bool:
    """Whether the probe belongs to the mean over the skills: an accuracy of what the base could do."""
    return info.kind == "skill" and info.metric == "accuracy"
