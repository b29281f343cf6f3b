"""What to do next: what the run shows, and the lines of the recipe that this asks to be changed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from align.advice.advise import advise
from align.advice.changes import Change, make
from align.advice.facts import RunFacts, StageFacts
from align.advice.lines import block
from align.advice.lines import stage as line
from align.forgetting.keys import MOST_ITEMS
from align.forgetting.table import Forgetting
from align.report import findings
from align.report.recipe_view import RecipeView, view
from align.report.schema import Report, StageRecord
from align.report.sentence import join
from align.report.shown import facts

FIRST_KL_COEF: Final = 0.1
"""What docs/recipes.md begins with."""


@dataclass(frozen=True)
class Step:
    """One thing to do: what the run shows, what to do about it, and the lines of the recipe, which may be none."""

    why: str
    what: str
    lines: tuple[str, ...] = ()


def steps(report: Report) -> Iterable[Step]:
    """In the order in which they help: what broke off, the causes that `align advise` names, what is not known."""
    if report.live:
        return
    for stage in report.stages:
        if stage.entry.status in ("failed", "interrupted", "running"):
            yield _unfinished(stage)
    run = facts(report)
    advice = advise(run)
    for cause in advice.causes:
        change = advice.first(cause)
        if change is None:
            yield Step(cause.sentence, "No change of the recipe is known to mend this.")
        else:
            yield Step(cause.sentence, change.what, block(change.lines))
    if report.forgetting is not None:
        yield from _too_far(report.forgetting, run)
    if report.forgetting is not None:
        yield from _unclear(report.forgetting, view(report.recipe))


def _unfinished(stage: StageRecord) -> Step:
    verb = "failed" if stage.entry.status == "failed" else "was interrupted"
    remedy = stage.failure.remedy if stage.failure else ""
    what = f"{remedy}; then run the same command again" if remedy else "run the same command again, and it resumes"
    return Step(f"{stage.id} {verb}.", f"{what[0].upper()}{what[1:]}.")


def _too_far(forgetting: Forgetting, run: RunFacts) -> Iterable[Step]:
    """Where a stage was the first to break `max_kl`, and forgot nothing else, of which the cause is told already."""
    for stage in run.stages:
        kl, before = (forgetting.task_kl.get(id) for id in (stage.id, forgetting.parent.get(stage.id, findings.BASE)))
        if kl is None or kl.verdict != "FORGOT" or stage.forgot or (before is not None and before.verdict == "FORGOT"):
            continue
        figures = f"{kl.figure} nats per token, limit {kl.limit:.3g}"
        why = f"{stage.id} went further from the base than `max_kl` allows: {figures}."
        mean = "If no probe fell, the limit may be lower than you mean."
        change = next(iter([*_held_by_kl(stage), *make(("closer", "rate_half", "half_steps"), stage, run)]), None)
        if change is None:
            yield Step(why, mean)
        else:
            yield Step(why, f"{change.what} {mean}", block(change.lines))


def _held_by_kl(facts: StageFacts) -> Iterable[Change]:
    """The KL term of supervised fine-tuning: begun with, or twice as strong."""
    if facts.program == "sft":
        old = facts.number("kl_coef")
        what = f"Hold {facts.id} closer to the policy that it starts from, by {'twice ' if old else ''}`kl_coef`."
        yield Change("kl", what, (line(facts.id, "kl_coef", old=old, new=2 * old if old else FIRST_KL_COEF),))


def _unclear(forgetting: Forgetting, recipe: RecipeView) -> Iterable[Step]:
    """Apart for what a set, a file and a task of the harness measure: each gets more items in a way of its own."""
    doubtful = {c.name: c for stage in findings.ends(forgetting) for c in findings.unclear(forgetting, stage)}
    own = {*recipe.own_files, *recipe.tasks}
    yield from _undecided([c for name, c in doubtful.items() if name not in own], recipe, _more_of_the_set)
    for names, more in ((recipe.own_files, _more_rows), (recipe.tasks, _more_of_the_task)):
        yield from _undecided([c for name, c in doubtful.items() if name in names], recipe, more)


def _undecided(
    doubtful: Sequence[findings.Change], recipe: RecipeView, more: Callable[[str, int, int, RecipeView], Step]
) -> Iterable[Step]:
    if not doubtful:
        return
    names = join([c.name for c in doubtful])
    needed = [c.cell.items_to_decide for c in doubtful if c.cell.items_to_decide]
    asked = max((c.probe.n or 0 for c in doubtful), default=0)
    if not needed:
        verb, its = ("stands", "its limit") if len(doubtful) == 1 else ("stand", "their limits")
        yield Step(f"{names} {verb} on {its}.", "No number of items would decide; set the limit that you mean.")
        return
    why = f"{names}: {asked:,} items are too few to decide; about {max(needed):,} would."
    yield more(why, asked, max(needed), recipe)


def _more_of_the_set(why: str, asked: int, needed: int, recipe: RecipeView) -> Step:
    measured = recipe.items or 2 * asked  # of both halves
    if recipe.probes not in ("auto", "general") or measured >= MOST_ITEMS:
        return Step(why, "Take the verdict as open, or probe it with a file of your own under `forgetting.probes`.")
    more = min(MOST_ITEMS, max(measured + 1, 2 * needed))
    enough = "" if 2 * needed <= MOST_ITEMS else ", which is as many as the battery has, and may still not decide"
    return Step(why, f"Ask more of them{enough}. Nothing is trained again.", ("forgetting:", f"  items: {more}"))


def _more_rows(why: str, asked: int, needed: int, recipe: RecipeView) -> Step:
    rows = f"Add rows to the probe's file: {2 * needed:,} in all, half of them for the gate."
    return Step(why, f"{rows} Nothing is trained again.")


def _more_of_the_task(why: str, asked: int, needed: int, recipe: RecipeView) -> Step:
    return Step(why, "Raise `limit` of the task, or leave it out, if it has more items. Nothing is trained again.")
