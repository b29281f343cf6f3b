"""Actions on violations that can never act, as a recipe has them. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from align.errors import AlignError
from align.forgetting import action_keys, probes
from align.forgetting.action_keys import Action
from align.forgetting.keys import ForgettingKeys
from align.interpolation import shares
from align.recipe import retries
from align.recipe.contradictions import Layers
from align.recipe.document import Document
from align.recipe.plan import StagePlan

AT = ("forgetting", "on_violation")


def faults(read: Document, keys: ForgettingKeys, plans: Sequence[StagePlan], layers: Layers) -> Iterator[AlignError]:
    """What is to be done where a limit is violated, and cannot be."""
    used = action_keys.used(keys.on_violation)
    acting = sorted(used & {"rollback", "retry", "interpolate"})
    if acting and keys.probes == "none":
        written = action_keys.shown(keys.on_violation)
        what = f"`on_violation: {written}` can never act: with `probes: none` no limit is measured"
        yield read.fault(AT, what, "write `probes: auto`, or remove it")
        return
    if acting and not _judged(plans):
        what = f"`on_violation: {action_keys.shown(keys.on_violation)}` can never act: no stage trains a policy"
        yield read.fault(AT, what, "remove it")
        return
    for name, limit in _unlimited(keys):
        what = f"on_violation has an action for {name}, which has no limit that could be violated"
        yield read.fault((*AT, name), what, f"write `{limit}`, or remove it")
    if "retry" in used:
        yield from _retry(read, keys, plans)
    if "interpolate" in used:
        yield from _interpolate(read, keys, plans, layers)


def _interpolate(
    read: Document, keys: ForgettingKeys, plans: Sequence[StagePlan], layers: Layers
) -> Iterator[AlignError]:
    """A share of an update that has none, with nothing else to be tried."""
    nothing_else = any(chain[-2:] == ("interpolate", "rollback") for chain in _written(keys))
    for plan in _judged(plans):
        refused = shares.refusal(layers[plan.policy], plan.layer)
        if refused and nothing_else:
            yield read.fault(AT, refused, "write what is done instead, as in `[interpolate, rollback]`, or remove it")


def _written(keys: ForgettingKeys) -> Iterator[tuple[Action, ...]]:
    """The chains that end with `interpolate`, with what follows from that."""
    written = keys.on_violation
    for name, chain in action_keys.chains(written).items():
        own = written.get(name) if isinstance(written, dict) else written
        if own is not None and (own if isinstance(own, str) else own[-1]) == "interpolate":
            yield chain


def _retry(read: Document, keys: ForgettingKeys, plans: Sequence[StagePlan]) -> Iterator[AlignError]:
    """A retry that would train the same again."""
    retry, judged = keys.retry, _judged(plans)
    if retry is None or not retry.changes:
        what = "a retry would train the same again: `forgetting.retry` changes nothing"
        at = ("forgetting", "retry") if retry is not None else AT
        yield read.fault(at, what, "write what it changes, as in `retry: {times: 2, replay: 2, learning_rate: 0.5}`")
    elif not any(retries.changed(plan, retry, 2) for plan in judged):
        what = "a retry would train the same again: `forgetting.retry` changes nothing in any stage"
        remedy = "write `learning_rate: 0.5` or `max_steps: 0.5` there"
        if retry.replay != 1 and not any(plan.replay and plan.replay.ratio for plan in judged):
            what += ", because none of them replays rows"
            zero = any(plan.replay for plan in judged)
            remedy += ", or a `replay.ratio` above 0" if zero else ", or give the recipe a `replay`"
        elif retry.replay != 1:
            what += f", because it raises no `replay.ratio` above {retries.MOST_REPLAY:g}"
        yield read.fault(("forgetting", "retry"), what, remedy)


def notes(keys: ForgettingKeys, plans: Sequence[StagePlan], layers: Layers) -> list[str]:
    """What of the actions does nothing, and stops no run."""
    used: set[Action] = action_keys.used(keys.on_violation)
    idle = [name for name in ("retry", "interpolate") if getattr(keys, name) is not None and name not in used]
    found = [f"forgetting: `{name}` does nothing: `on_violation` has no `{name}`" for name in idle]
    if "retry" in used and keys.retry is not None:
        same = [plan.id for plan in _judged(plans) if not retries.changed(plan, keys.retry, 2)]
        found += [f"stage {id}: it is not tried again, because `forgetting.retry` changes nothing in it" for id in same]
    if "interpolate" in used:
        refused = [(plan.id, shares.refusal(layers[plan.policy], plan.layer)) for plan in _judged(plans)]
        found += [f"stage {id}: `interpolate` is passed over: {why}" for id, why in refused if why]
    return found


def _judged(plans: Sequence[StagePlan]) -> list[StagePlan]:
    return [plan for plan in plans if plan.program.stage.gives == "policy"]


def _unlimited(keys: ForgettingKeys) -> Iterator[tuple[str, str]]:
    """The names in `on_violation` whose limits are off, and the keys of these."""
    texts = probes.texts(keys)
    for name in keys.on_violation if isinstance(keys.on_violation, dict) else ():
        if name == "kl" and keys.max_kl is None:
            yield name, "max_kl"
        if texts.get(name) and keys.max_perplexity_ratio is None:
            yield name, "max_perplexity_ratio"
