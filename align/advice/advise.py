"""The advice on a run: what went wrong, and three changes of its recipe, the most likely to help first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Final

from align.advice import evidence, remedies
from align.advice.causes import Cause, causes, join
from align.advice.changes import Change, make
from align.advice.evidence import Evidence
from align.advice.facts import RunFacts, StageFacts
from align.advice.lines import Line

MOST: Final = 3
"""Changes that are advised."""


@dataclass(frozen=True)
class Advised:
    """A change and the rows of the tables that speak for it."""

    cause: Cause
    change: Change
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Advice:
    """On a run.

    Attributes:
        verdict: one sentence: the first cause, or that there is nothing to change, or why nothing can be said.
        causes: the likeliest first.
        ranked: every change that may help; `changes` are the first `MOST`.
        notes: what else the run shows that bears on it.
    """

    run: str
    verdict: str
    causes: tuple[Cause, ...] = ()
    ranked: tuple[Advised, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[Advised, ...]:
        """What is advised."""
        return self.ranked[:MOST]

    def first(self, cause: Cause) -> Change | None:
        """What mends a cause first."""
        return next((one.change for one in self.ranked if one.cause == cause), None)


def advise(run: RunFacts) -> Advice:
    """What the run shows, its cause, and what to change."""
    found = [(facts, cause) for facts in run.stages for cause in causes(facts)]
    found.sort(key=lambda one: not (one[0].forgot and one[1] == causes(one[0])[0]))  # first what was forgotten
    columns = [list(changes(facts, cause, run)) for facts, cause in found]
    ordered = [one for row in zip_longest(*columns) for one in row if one is not None]
    return Advice(
        run.name,
        found[0][1].sentence if found else _nothing(run),
        tuple(cause for _, cause in found),
        tuple(_different(ordered)),
        tuple(_notes(run, {cause.stage for _, cause in found})),
    )


def changes(facts: StageFacts, cause: Cause, run: RunFacts) -> Iterator[Advised]:
    """Those that the cause asks for, then what was better than nothing in the experiment, the best first.

    Each has evidence: what no table speaks for is not advised, except what the cause asks for first.
    """
    asked = [_of_recipe(change, facts) for change in make(cause.changes, facts, run)]
    for at, change in enumerate(asked):
        rows = tuple(evidence.of_change(cause.key, change.key)) or tuple(remedies.speaks(change.key, facts.family))
        if rows or not at:
            yield Advised(cause, change, rows)
    if facts.forgot:
        for change, row in remedies.ranked(facts, run, known={one.key for one in asked}):
            yield Advised(cause, _of_recipe(change, facts), (row,))


def _of_recipe(change: Change, facts: StageFacts) -> Change:
    """A change of what an attempt trained with as one of the recipe: what a line replaces is what stands there, and the
    attempt's other values are written into it too."""
    if not facts.changed:
        return change
    own = {("stages", facts.id, *path): (before, facts.value(*path)) for path, before in facts.changed.items()}
    lines = [replace(line, old=own[line.path][0]) if line.path in own else line for line in change.lines]
    told = {line.path for line in lines}
    lines += [Line(path, before, after) for path, (before, after) in own.items() if path not in told]
    return replace(change, lines=tuple(sorted(lines, key=lambda line: line.path[:-1])))


def _different(found: list[Advised]) -> Iterator[Advised]:
    """Without a second change of the same keys."""
    seen = set[tuple[tuple[str, ...], ...]]()
    for one in found:
        paths = tuple(line.path for line in one.change.lines)
        if paths not in seen:
            seen.add(paths)
            yield one


def _nothing(run: RunFacts) -> str:
    if not run.stages:
        return "No stage that gives a policy is done: there is nothing to judge yet."
    if not run.measured:
        return (
            "Nothing was measured, so nothing can be said of what was forgotten: set `forgetting.probes` and run the "
            "recipe again; what is trained is measured, not trained again."
        )
    if run.undecided:
        return "Nothing was forgotten for certain, and nothing is known to ask for a change; some of it is undecided."
    unknown = [facts.id for facts in run.stages if facts.learnt is None]
    if unknown:
        return (
            f"Nothing was forgotten. Whether {join(unknown)} learnt {'its' if len(unknown) == 1 else 'their'} task was "
            "not measured: hold rows out with `eval_data`, or name a probe of the task."
        )
    return "Nothing was forgotten and the task was learnt: there is nothing to change."


def _notes(run: RunFacts, faulty: Iterable[str]) -> Iterator[str]:
    if run.unfinished:
        are = "is" if len(run.unfinished) == 1 else "are"
        why = ": run the same command again"
        if run.ended_by is not None:
            why = f", because the gate ended the run after {run.ended_by}"
        elif run.failed is not None:
            why = f", because {run.failed} failed: mend what its error says, and run the same command again"
        yield f"{join(run.unfinished)} {are} not done{why}; this is about the stages before."
    if run.undecided:
        numbers = [n for _, n in run.undecided if n]
        names = join([name for name, _ in run.undecided])
        few = f"too few items to decide; about {max(numbers):,} would" if numbers else "on their limits"
        yield f"Undecided: {names}: {few}. More `items` change the verdict, not the model."
    for facts in run.stages:
        if facts.acted:
            too = "; the changes have these values too" if facts.changed and facts.id in faulty else ""
            yield f"{facts.acted}{too}."
        for name, remedy in facts.alarms:
            yield f"{facts.id} raised the alarm {name}: {remedy}."
        yield from (f"{facts.id} warned: {text}." for text in facts.warnings if facts.id in faulty)
