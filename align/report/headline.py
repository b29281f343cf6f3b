"""What stands first on the report: one word and line of verdict, and one sentence for who pays for the run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from align.forgetting.distances import KL
from align.forgetting.judgement import MEAN
from align.forgetting.table import Cell, Forgetting, ProbeEntry
from align.report import curves, findings, numbers
from align.report.findings import Change
from align.report.recipe_view import view
from align.report.schema import Report
from align.report.sentence import beyond, from_to, handed_on, join, nothing, tolerated

Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True)
class Headline:
    """The verdict: a word, its tone, the line after the word, and the sentence below (empty where nothing was
    trained and measured)."""

    word: str
    tone: Tone
    text: str
    sentence: str


NO_RESULT: Final = "NO RESULT"


def headline(report: Report) -> Headline:
    """The verdict on a run, and first of all whether it came to its end."""
    word, tone, text = _judged(report.forgetting) if report.forgetting else (NO_RESULT, "open", "")
    text = text or nothing(report)
    crossed = _crossed(report)
    if crossed:
        tone, text = ("open" if tone == "good" else tone), f"{text}; beyond its budget: {join(crossed)}"
    if report.forgetting and (rolled := report.forgetting.rolled_back) and word != NO_RESULT:
        what = f"{join(rolled)} {'was' if len(rolled) == 1 else 'were'} rolled back"
        tone, text = ("open" if tone == "good" else tone), f"{text}; {what}"
    found = f"{word}: {text}" if word != NO_RESULT else text[0].lower() + text[1:]
    status = {stage.id: stage.entry.status for stage in report.stages}
    by: dict[str, list[str]] = {}
    for id, one in status.items():
        by.setdefault(one, []).append(id)
    if report.live:
        word, tone, text = "UNDER WAY", "open", f"so far {found}"
    elif "failed" in by:
        word, tone, text = "FAILED", "bad", f"{join(by['failed'])} failed; {found}"
    elif "interrupted" in by or "running" in by:
        names = [*by.get("interrupted", ()), *by.get("running", ())]
        word, tone, text = "INTERRUPTED", "open", f"in {join(names)}; {found}"
    elif "stopped" in by:
        word, tone, text = "STOPPED", "bad", f"the gate ended the run after {join(by['stopped'])}; {found}"
    return Headline(word, tone, f"{text}.", _sentence(report))


def _judged(forgetting: Forgetting) -> tuple[str, Tone, str]:
    """The verdict on the policies that the run hands on; FORGOT where one of them forgot."""
    stages = findings.ends(forgetting)
    if not stages:
        if forgetting.rolled_back:
            return NO_RESULT, "open", handed_on(forgetting)
        return (NO_RESULT, "open", "only the base has been measured" if forgetting.matrix else "")
    changes = [change for stage in stages for change in findings.changes(forgetting, stage)]
    means = {stage: cell for stage in stages if (cell := forgetting.mean.get(stage, {}).get(findings.ALL))}
    forgot = sorted((c for c in changes if c.cell.verdict == "FORGOT"), key=lambda c: -c.size)
    after = f" after {join(stages)}"
    if forgot:
        named = join([f"{c.name} ({numbers.change(c.effect) or from_to(c)})" for c in forgot])
        return "FORGOT", "bad", f"{named}, surely beyond {beyond(forgot)}{after}"
    fallen = [stage for stage, cell in means.items() if cell.verdict == "FORGOT"]
    if fallen:
        return "FORGOT", "bad", f"the {MEAN} fell surely past its limit ({numbers.change(means[fallen[0]])}){after}"
    distant = {stage: kl for stage in stages if (kl := forgetting.task_kl.get(stage)) and kl.verdict}
    past = [f"{kl.figure} after {stage}" for stage, kl in distant.items() if kl.verdict == "FORGOT"]
    if past:
        limit = f"{next(iter(distant.values())).limit:.3g}"
        return "FORGOT", "bad", f"the {KL} is surely past its limit of {limit} nats per token: {join(past)}"
    unclear = [c for c in changes if c.cell.verdict == "UNCLEAR"]
    kept = bool(means) and all(cell.verdict == "OK" for cell in means.values())
    near = all(kl.verdict == "OK" for kl in distant.values())
    if unclear and kept and near and all(_is_skill(c.probe) for c in unclear):
        return "PASSED", "good", _kept(changes, unclear, means) + after
    if unclear or any(cell.verdict == "UNCLEAR" for cell in means.values()):
        return "UNCLEAR", "open", _doubt(unclear, after)
    if any(kl.verdict == "UNCLEAR" for kl in distant.values()):
        return "UNCLEAR", "open", f"the prompts cannot tell whether the {KL} is within its limit{after}"
    judged = len({c.name for c in changes if c.cell.verdict})
    if not judged:
        return "NOT JUDGED", "open", f"no capability has a limit{after}"
    what = "the one capability that has a limit is" if judged == 1 else f"all {judged} capabilities are"
    return "PASSED", "good", f"{what} surely within {tolerated(forgetting)}{after}"


def _crossed(report: Report) -> list[str]:
    """What each stage's decision says is beyond a budget: `perplexity of stories after sft`."""
    return [
        f"{one.budget.replace('_', ' ')}{f' of {one.probe}' if one.probe else ''} after {stage.id}"
        for stage in report.stages
        for one in (stage.decision.budgets if stage.decision else ())
    ]


def _kept(changes: Sequence[Change], unclear: Sequence[Change], means: Mapping[str, Cell]) -> str:
    """The skills together are decided though single ones are not, as with a battery of many skills and few items."""
    figures = join([numbers.change(cell) for cell in means.values()])
    few = len({c.name for c in unclear})
    judged = len({c.name for c in changes if c.cell.verdict})
    own = "has" if few == 1 else "have"
    return (
        f"the {MEAN} is surely within its limit ({figures}) and nothing is surely past one; {few} of {judged} "
        f"capabilities {own} too few items to be decided one by one"
    )


def _doubt(unclear: Sequence[Change], after: str) -> str:
    if not unclear:
        return f"the items cannot tell whether the {MEAN} is within its limit{after}"
    needed = [c.cell.items_to_decide for c in unclear if c.cell.items_to_decide]
    would = f"; about {max(needed):,} would" if needed else ""
    return f"{join([c.name for c in unclear])}{after}: the items measured cannot decide{would}"


def _sentence(report: Report) -> str:
    """What was trained on, what that brought and what it cost, in counts of questions where there are counts."""
    forgetting = report.forgetting
    ends = findings.ends(forgetting) if forgetting else []
    if forgetting is None or not ends:
        return ""
    stage = ends[-1]
    history = [stage]
    while history[0] in forgetting.parent and forgetting.parent[history[0]] != findings.BASE:
        history.insert(0, forgetting.parent[history[0]])
    recipe = view(report.recipe)
    data = list(dict.fromkeys(name for id in history if id in recipe.stages for name in recipe.stages[id].sources))
    on = f" on {join(data)}" if data else ""
    gain = _gain(report, forgetting, stage)
    parts = [*([gain] if gain else []), *_cost(forgetting, stage)]
    rest = "" if gain else "; what it gained was not measured"
    return f"After training{on} ({', then '.join(history)}) the model {' and '.join(parts)}{rest}."


def _gain(report: Report, forgetting: Forgetting, stage: str) -> str:
    tasks = [c for c in findings.changes(forgetting, stage) if c.probe.kind == "task"]
    if tasks:
        return _counted(tasks[0])
    losses = next((curves.finite(curves.eval_loss(one)) for one in report.stages if one.id == stage), [])
    if len(losses) > 1:
        return f"moved its evaluation loss from {losses[0][1]:.3g} to {losses[-1][1]:.3g}"
    return ""


def _counted(change: Change) -> str:
    """`gets 176 of 200 questions of the task right instead of 3`; scores where they are no counts."""
    before, after, n = right(change.before, change.cell), right(change.after, change.cell), change.cell.n
    if before is None or after is None:
        return f"went from {from_to(change)} in {change.name}"
    return f"gets {after} of {n:,} questions of the task right instead of {before} ({change.name})"


def right(score: float | None, cell: Cell) -> str | None:
    """How many items a score stands for; None where they are marked in parts, or the score is no mean of items."""
    if score is None or not cell.n:
        return None
    count = score * cell.n
    return f"{round(count):,}" if abs(count - round(count)) < 0.02 else None  # six digits are written


def _cost(forgetting: Forgetting, stage: str) -> Iterable[str]:
    changes = findings.changes(forgetting, stage)
    skills = [c for c in changes if _is_skill(c.probe)]
    if not skills:
        for change in changes:
            if change.probe.metric == "perplexity":
                yield f"went from a perplexity of {from_to(change)} on {change.name}"
        return
    lost = sorted((c for c in skills if c.cell.verdict == "FORGOT"), key=lambda c: -c.size)
    doubtful = sum(c.cell.verdict == "UNCLEAR" for c in skills)
    fell = sum(findings.direction(c.effect, c.probe) == "worse" for c in skills) - len(lost)
    if lost:
        named = join([f"{c.name} ({_fall(c)})" for c in lost])
        yield f"lost {len(lost)} of its {len(skills)} skills: {named}"
    elif doubtful:
        yield f"kept {len(skills) - doubtful} of its {len(skills)} skills for certain ({doubtful} unclear)"
    elif all(c.cell.verdict is None for c in skills):
        yield f"got surely worse at {fell} of its {len(skills)} skills"
    else:
        yield f"kept all of its {len(skills)} skills within the limits"


def _is_skill(probe: ProbeEntry) -> bool:
    return probe.kind == "skill" and probe.metric == "accuracy"


def _fall(change: Change) -> str:
    before, after = right(change.before, change.cell), right(change.after, change.cell)
    if before is None or after is None:
        return from_to(change)
    return f"{after} of {change.cell.n:,} right instead of {before}"
