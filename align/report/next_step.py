"""What to do next: what the run shows, and the lines of the recipe that this asks to be changed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from align.forgetting.judgement import MEAN
from align.forgetting.keys import MOST_ITEMS
from align.forgetting.table import Forgetting
from align.report import curves, findings
from align.report.findings import Change
from align.report.recipe_view import RecipeView, StageRecipe, view
from align.report.schema import Report, StageRecord
from align.report.sentence import join

MOST_REPLAY: Final = 0.5
"""Above it more rows are old than new, and another lever is worth more."""

FIRST_REPLAY: Final = 0.1
"""What a recipe is advised to begin with that replays nothing."""


@dataclass(frozen=True)
class Step:
    """One thing to do: what the run shows, what to do about it, and the lines of the recipe, which may be none."""

    why: str
    what: str
    lines: tuple[str, ...] = ()


def steps(report: Report) -> Iterable[Step]:
    """In the order in which they help: first what forgot, then what is not known, then what trained badly."""
    if report.live:
        return
    recipe, forgetting = view(report.recipe), report.forgetting
    for stage in report.stages:
        if stage.entry.status in ("failed", "interrupted", "running"):
            yield _unfinished(stage)
    if forgetting is not None:
        for id, lost in _first_lost(forgetting):
            yield from _forgot(id, lost, recipe.stages.get(id, StageRecipe()), _stage(report, id))
        yield from _unclear(forgetting, recipe)
    for stage in report.stages:
        yield from _overfitted(stage)


def _unfinished(stage: StageRecord) -> Step:
    verb = "failed" if stage.entry.status == "failed" else "was interrupted"
    remedy = stage.failure.remedy if stage.failure else ""
    what = f"{remedy}; then run the same command again" if remedy else "run the same command again, and it resumes"
    return Step(f"{stage.id} {verb}.", f"{what[0].upper()}{what[1:]}.")


def _first_lost(forgetting: Forgetting) -> Iterable[tuple[str, list[Change]]]:
    """The stages after which something was lost that none before them had lost; the mean alone counts too."""
    for stage in forgetting.stages:
        if stage == findings.BASE or stage not in forgetting.matrix:
            continue
        before = forgetting.parent.get(stage, findings.BASE)
        known = {name for name, cell in forgetting.matrix.get(before, {}).items() if cell.verdict == "FORGOT"}
        lost = [c for c in findings.changes(forgetting, stage) if c.cell.verdict == "FORGOT" and c.name not in known]
        mean, earlier = (forgetting.mean.get(id, {}).get(findings.ALL) for id in (stage, before))
        fell = mean is not None and mean.verdict == "FORGOT" and not (earlier and earlier.verdict == "FORGOT")
        if lost or (fell and not known):
            yield stage, sorted(lost, key=lambda change: -change.size)


def _forgot(id: str, lost: Sequence[Change], recipe: StageRecipe, stage: StageRecord | None) -> Iterable[Step]:
    names = join([c.name for c in lost]) if lost else f"the {MEAN}"
    ratio = _replayed(stage) or 0.0
    covered = [c for c in lost if c.probe.replayed]
    if recipe.replays and not ratio:
        lines = _lines(id, "replay:", "  data: FILE", f"  ratio: {FIRST_REPLAY:g}")
        what = "Replay old rows in it: FILE holds rows of the kinds that must not be forgotten."
        yield Step(f"{id} forgot {names}, and replayed nothing.", what, lines)
    elif recipe.replays and len(covered) < len(lost):
        missed = join([c.name for c in lost if not c.probe.replayed])
        what = f"Add rows of that kind to the replay data of {id}; replay protects only what it covers."
        yield Step(f"{id} forgot {missed}, which the replayed rows do not cover.", what)
    if recipe.replays and covered and 0 < ratio < MOST_REPLAY:
        more = min(MOST_REPLAY, 2 * ratio)
        what = "Replay more of them."
        lines = _lines(id, "replay:", f"  ratio: {more:.2g}")
        yield Step(f"{id} forgot {join([c.name for c in covered])} although {ratio:.0%} replay covers it.", what, lines)
    if recipe.learning_rate:
        lines = _lines(id, "training:", f"  learning_rate: {yaml_number(recipe.learning_rate / 2)}")
        what = f"Make {id} a smaller step, as far as its own task allows: half of its learning rate of "
        yield Step(f"{id} forgot {names}.", f"{what}{recipe.learning_rate:g}.", lines)


def _unclear(forgetting: Forgetting, recipe: RecipeView) -> Iterable[Step]:
    """Apart for what a set, a file and a task of the harness measure: each gets more items in a way of its own."""
    doubtful = {c.name: c for stage in findings.ends(forgetting) for c in findings.unclear(forgetting, stage)}
    own = {*recipe.own_files, *recipe.own_tasks}
    yield from _undecided([c for name, c in doubtful.items() if name not in own], recipe, _more_of_the_set)
    for names, more in ((recipe.own_files, _more_rows), (recipe.own_tasks, _more_of_the_task)):
        yield from _undecided([c for name, c in doubtful.items() if name in names], recipe, more)


def _undecided(
    doubtful: Sequence[Change], recipe: RecipeView, more: Callable[[str, int, int, RecipeView], Step]
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


def _overfitted(stage: StageRecord) -> Iterable[Step]:
    train, evaluation = curves.train_loss(stage), curves.finite(curves.eval_loss(stage))
    judged = curves.overfitting(train, evaluation)
    if judged.tone != "bad":
        return
    step, lowest = min(evaluation, key=lambda point: point[1])
    if step < 1:
        return
    why = f"{stage.id} overfits: its evaluation loss was lowest at step {step:g} ({lowest:.3g})."
    yield Step(why, "End it there.", _lines(stage.id, "training:", f"  max_steps: {step:.0f}"))


def _replayed(stage: StageRecord | None) -> float | None:
    """The share of the rows of a stage that were replayed, as it found them."""
    outcome = stage.outcome if stage else None
    if outcome is None or not outcome.data.get("replay_rows"):
        return None
    ratio = outcome.data.get("replay_ratio")
    return float(ratio) if isinstance(ratio, int | float) else None


def _stage(report: Report, id: str) -> StageRecord | None:
    return next((stage for stage in report.stages if stage.id == id), None)


def yaml_number(value: float) -> str:
    """Two digits, as YAML takes them for a number: `5.0e-5`, not `5e-05`, which is a text."""
    if value >= 0.001:
        return f"{value:.2g}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}"


def _lines(stage: str, *lines: str) -> tuple[str, ...]:
    return ("stages:", f"  {stage}:", *(f"    {line}" for line in lines))
