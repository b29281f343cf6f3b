"""Which of several runs is better, and whether that is sure.

What counts are the headline figures of the last policies: the mean of the skills, every figure of the task, and the
perplexity of running text. One run is better than another if one of them is surely better and none surely worse. A
single skill does not count by itself: of twenty that are compared, one differs by chance.
"""

from __future__ import annotations

from collections.abc import Sequence

from align.compare import differences
from align.compare.sides import Side
from align.compare.table import Difference, Finding, Outcome, Row, Table
from align.forgetting.judgement import is_skill
from align.forgetting.measurements import Split
from align.forgetting.table import ProbeEntry
from align.report import numbers

HEADLINES = ("task", "text")
NAMED = 4  # figures that a sentence names before it counts the rest


def headlines(table: Table) -> list[Row]:
    """The rows by which runs are judged, the mean of the skills first."""
    rows = [row for row in table.rows if row.kind in HEADLINES]
    return [table.mean, *rows] if table.mean else rows


def against_first(labels: Sequence[str], table: Table) -> list[Finding]:
    """Every run against the first one."""
    return [_finding(labels, table, at) for at in range(1, len(labels))]


def best(sides: Sequence[Side], table: Table, split: Split) -> str | None:
    """The run that is better than every other for certain; None where there is none."""
    rows = headlines(table)
    skills = [row.name for row in table.rows if is_skill(sides[0].base.probes[row.name])]
    last = [side.stages[side.last] for side in sides]

    def wins(a: int, b: int) -> bool:
        found = [
            differences.mean_difference(last[b], last[a], split, skills)
            if row is table.mean
            else differences.difference(last[b], last[a], split, row.name)
            for row in rows
        ]
        return _outcome(found) == "better"

    others = range(len(sides))
    return next((sides[a].label for a in others if all(wins(a, b) for b in others if b != a)), None)


def _finding(labels: Sequence[str], table: Table, at: int) -> Finding:
    rows = headlines(table)
    changes = [(row, row.differences[at - 1]) for row in rows]
    better = [_said(row, at) for row, change in changes if change.direction == "better"]
    worse = [_said(row, at) for row, change in changes if change.direction == "worse"]
    same = [row.name for row, change in changes if change.direction is None]
    outcome = _outcome([change for _, change in changes])
    run, first = labels[at], labels[0]
    sentence = {
        "better": f"{run} is better than {first} for certain: {_join(better)}",
        "worse": f"{run} is worse than {first} for certain: {_join(worse)}",
        "mixed": f"{run} is better than {first} in {_join(better)}, but worse in {_join(worse)}",
        "unsure": f"{run} and {first} do not differ for certain: {_join([_said(row, at) for row in rows])}",
    }[outcome]
    if same and outcome != "unsure":
        sentence += f"; no sure difference in {_join(same)}"
    if not rows:
        sentence = f"{run} and {first} cannot be judged: no skill, task or running text was measured"
    return Finding(
        run=run,
        against=first,
        outcome=outcome,
        better=tuple(row.name for row, change in changes if change.direction == "better"),
        worse=tuple(row.name for row, change in changes if change.direction == "worse"),
        sentence=f"{sentence}{_skills(table, at)}.",
    )


def _outcome(changes: Sequence[Difference]) -> Outcome:
    directions = {change.direction for change in changes} - {None}
    if len(directions) > 1:
        return "mixed"
    return next(iter(directions), None) or "unsure"


def _said(row: Row, at: int) -> str:
    """`mean of skills (0.485 against 0.953, -0.468 [-0.480, -0.455])`."""
    probe, change = ProbeEntry(metric=row.metric), row.differences[at - 1]
    mine, first = (numbers.score(value.score, probe) for value in (row.values[at], row.values[0]))
    return f"{row.name} ({mine} against {first}, {numbers.change(change)} {numbers.interval(change)})"


def _skills(table: Table, at: int) -> str:
    """How many single skills differ, which says where to look."""
    found = [row.differences[at - 1].direction for row in table.rows if row.kind == "skill"]
    if not any(found):
        return ""
    better, worse = found.count("better"), found.count("worse")
    words = [f"{count} surely {word}" for count, word in ((better, "better"), (worse, "worse")) if count]
    return f"; of {len(found)} skills {' and '.join(words)}"


def _join(parts: Sequence[str]) -> str:
    if len(parts) > NAMED:
        parts = [*parts[:NAMED], f"{len(parts) - NAMED} more"]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
