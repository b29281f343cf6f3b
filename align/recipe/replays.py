"""Replay from what an earlier stage trained on: whether there is such a stage, and whether its rows can be replayed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from align.data.formats import LEARNT
from align.errors import AlignError, did_you_mean
from align.recipe.document import Document, Loc
from align.recipe.plan import StagePlan
from align.stage.replay_keys import ReplaySource


def places(plan: StagePlan) -> list[tuple[Loc, ReplaySource]]:
    """The sources of a stage's replay, each with the place in the recipe where it is written."""
    if plan.replay is None or not plan.replays:
        return []
    own = "replay" in plan.keys.model_fields_set
    at: Loc = ("stages", plan.id, "replay") if own else ("replay",)
    if plan.replay.sources is None:
        return [(at, plan.replay.each[0])]
    return [((*at, "sources", number), source) for number, source in enumerate(plan.replay.sources)]


def faults(read: Document, plans: Sequence[StagePlan]) -> Iterator[AlignError]:
    """Stages that are named as a source and cannot be one."""
    known = {plan.id: plan for plan in plans}
    for plan in plans:
        for at, source in places(plan):
            if source.stage is None:
                continue
            what, remedy = _wrong(plan, source.stage, known, shared=at[0] == "replay")
            if what:
                yield read.fault((*at, "stage"), what, remedy)


def before(plan: StagePlan, known: dict[str, StagePlan]) -> list[str]:
    """The stages whose policy a stage goes on from, the nearest first."""
    found, at = list[str](), plan.policy
    while at in known:
        found.append(at)
        at = known[at].policy
    return found


def _wrong(plan: StagePlan, named: str, known: dict[str, StagePlan], *, shared: bool) -> tuple[str, str]:
    if named not in known:
        return f"the replay of stage '{plan.id}' names '{named}', which is no stage", did_you_mean(named, list(known))
    earlier = before(plan, known)
    if named not in earlier:
        what = f"stage '{plan.id}' cannot replay the rows of '{named}', because it does not go on from its policy"
        if named == plan.id:
            what = f"stage '{plan.id}' cannot replay its own rows"
        if shared:
            return what, f"write `replay: null` in '{plan.id}', or the replay in the stages that it is for"
        usable = [f"`{{stage: {id}}}`" for id in earlier if known[id].program.stage.rows & LEARNT]
        return what, f"write {' or '.join(usable)}, or `data:` with a file" if usable else "write `data:` with a file"
    rows = known[named].program.stage.rows
    if not rows & LEARNT:
        kinds = " and ".join(sorted(rows))
        what = f"stage '{plan.id}' cannot replay the rows of '{named}', which trains on {kinds} rows alone"
        return what, "name a stage that trains on answers or texts, such as `sft`"
    return "", ""
