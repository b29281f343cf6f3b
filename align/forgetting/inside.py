"""What was measured of a policy while it was trained: a line for each measurement, judged as the gate judges. No torch.

Only the gate's half of the items is measured, since what is stopped by a figure must not be reported by the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from align.forgetting import measurements
from align.forgetting.gate import finite
from align.forgetting.judgement import MEAN, Finding, is_skill, judge
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import Measurement, Metric, Split, compare
from align.forgetting.statistics import Change, PerplexityChange, Verdict
from align.forgetting.table import Number
from align.run_folder import files, reading
from align.run_folder.records import Inside, Insight, Record
from align.run_folder.stage_dir import StageDir

GATE: tuple[Split] = ("gate",)


class Point(Record):
    """A probe, or the mean over the skills, at one step.

    Attributes:
        change: after - before, or of perplexity after / before, and its 95 % interval; None: not finite.
        limit: a drop, or a ratio; None where there is none.
    """

    metric: Metric = "accuracy"
    before: Number = None
    score: Number = None
    change: Number = None
    low: Number = None
    high: Number = None
    limit: Number = None
    verdict: Verdict | None = None

    @classmethod
    def of(cls, change: Change | PerplexityChange, before: float, score: float, finding: Finding | None) -> Point:
        """From a change against the base, with what it says where it has a limit."""
        ratio = isinstance(change, PerplexityChange)
        return cls(
            metric="perplexity" if ratio else "accuracy",
            before=finite(before),
            score=finite(score),
            change=finite(change.ratio if isinstance(change, PerplexityChange) else change.delta),
            low=finite(change.low),
            high=finite(change.high),
            limit=finding.limit if finding else None,
            verdict=finding.verdict if finding else None,
        )

    @property
    def share(self) -> float:
        """How much of its limit is used up; inf of what is not finite any more."""
        if self.change is None or self.limit is None:
            return float("inf")
        if self.metric == "perplexity":
            return (self.change - 1) / (self.limit - 1) if self.limit > 1 else self.change - 1
        return -self.change / self.limit if self.limit else -self.change


class Measured(Record):
    """A line of measurements.jsonl.

    Attributes:
        origin: before: of the policy that training began with; inside; after: of the policy handed on.
        seconds, cpu_seconds: of measuring, judging and keeping; 0 where nothing was measured for it.
        broken: sentences on the limits that are surely broken.
    """

    step: int
    origin: Literal["before", "inside", "after"] = "inside"
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    points: Mapping[str, Point] = {}
    broken: tuple[str, ...] = ()

    def short(self) -> str:
        """The mean and the probe that has used up most of its limit, for a line of progress."""
        judged = {name: point for name, point in self.points.items() if point.limit is not None}
        chosen = [MEAN] if MEAN in judged else []
        rest = [name for name in judged if name != MEAN] or [name for name in self.points if name != MEAN]
        chosen += sorted(rest, key=lambda name: -self.points[name].share)[:1]
        return ", ".join(_short(name, self.points[name]) for name in chosen)


def _short(name: str, point: Point) -> str:
    if point.change is None:
        return f"{name} diverged"
    return f"{name} x{point.change:.2f}" if point.metric == "perplexity" else f"{name} {point.change:+.3f}"


@dataclass(frozen=True)
class Judge:
    """Holds measurements against the base's stored ones.

    Attributes:
        base: of the watched probes alone.
        whole: whether these are all skills, so that their mean is the one that has a limit.
    """

    base: Measurement
    keys: ForgettingKeys
    whole: bool

    @classmethod
    def of(cls, base: Path, settings: Inside) -> Judge:
        """Against the measurement in a folder, with the probes and limits that a ticket names.

        Raises:
            AlignError: the measurement is damaged, or a limit names a probe that is not measured.
        """
        found = measurements.load(base)
        keys = ForgettingKeys.model_validate(settings.limits)
        keys.check_names(found.probes)
        chosen = found.probes if settings.watch is None else settings.watch
        whole = all(name in chosen for name, info in found.probes.items() if is_skill(info))
        return cls(only(found, chosen), keys, whole)

    def judged(self, step: int, after: Measurement) -> Measured:
        """A line without what it took.

        Raises:
            AlignError: other items were measured of a probe.
        """
        findings = judge(self.base, after, "gate", self.keys)
        if not self.whole:
            findings.pop(MEAN, None)
        points = {}
        for name in [name for name in self.base.probes if self.base.has("gate", name)]:
            change = compare(self.base, after, "gate", name)
            before, score = self.base.score("gate", name), after.score("gate", name)
            points[name] = Point.of(change, before, score, findings.get(name))
        if MEAN in findings:
            mean = findings[MEAN]
            points[MEAN] = Point.of(mean.change, mean.before, mean.after, mean)
        broken = tuple(finding.sentence() for finding in findings.values() if finding.verdict == "FORGOT")
        return Measured(step=step, points=points, broken=broken)

    def stored(self, step: int, origin: Literal["before", "after"], folder: Path) -> Measured | None:
        """The same from a measurement that was made of the policy at rest; None where it holds other items."""
        if not (folder / "summary.json").is_file():
            return None
        found = measurements.load(folder)
        for name in self.base.probes:
            if found.items.get(("gate", name), {}).keys() != self.base.items.get(("gate", name), {}).keys():
                return None
        return self.judged(step, found).but(origin=origin)


def only(found: Measurement, chosen: object) -> Measurement:
    """A measurement of some probes alone."""
    names = set(chosen) if isinstance(chosen, list | dict) else set()
    items = {key: value for key, value in found.items.items() if key[1] in names}
    return Measurement({name: info for name, info in found.probes.items() if name in names}, items, found.place)


def read(stage: StageDir, until: int | None = None) -> list[Measured]:
    """The lines of a stage, in the order of steps; those after a step left out, where one is given."""
    found = reading.rows(stage.curve, Measured)
    return [line for line in found if until is None or line.step <= until]


def write(stage: StageDir, lines: list[Measured]) -> None:
    """Write all lines."""
    files.write_text(stage.curve, "".join(line.model_dump_json(exclude_unset=True) + "\n" for line in lines))


def ended(stage: StageDir, settings: Inside, until: int) -> Measured | None:
    """The measurement that ended a stage, at a step or before it; None where none did."""
    if not settings.early_stop:
        return None
    return next((line for line in read(stage, until) if line.broken and line.origin == "inside"), None)


def insight(stage: StageDir, settings: Inside, steps: int, every: int | None) -> Insight:
    """What the outcome says of a stage that has made so many steps."""
    lines, stop = read(stage), ended(stage, settings, steps)
    made = [line for line in lines if line.seconds]
    told = Insight(
        measurements=len(made),
        seconds=sum(line.seconds for line in made),
        cpu_seconds=sum(line.cpu_seconds for line in made),
        every=every,
    )
    if stop is None:
        return told
    kept = max((line.step for line in lines if line.step < stop.step and not line.broken), default=0)
    return told.model_copy(update={"stopped": stop.step, "kept": kept, "reasons": list(stop.broken)})


def sentence(stage: StageDir, told: Insight, planned: int) -> str:
    """Why a stage was ended, and what it hands on."""
    first = read(stage, 0)
    came_in = "those that came in, are kept"
    if first and first[0].broken:
        came_in += ", which were beyond a limit already"
    kept = f"the weights of step {told.kept} are kept" if told.kept else f"the weights of step 0, {came_in}"
    more = f" (and {len(told.reasons) - 1} more)" if len(told.reasons) > 1 else ""
    return f"stopped at step {told.stopped} of {planned}; {kept}, because {told.reasons[0]}{more}"
