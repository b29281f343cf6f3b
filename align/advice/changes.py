"""The changes of a recipe that advice is made of, each by a key under which docs/remedies.md has what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from align.advice.facts import FAR, RunFacts, StageFacts
from align.advice.lines import Line, number, several, source, stage

FIRST_REPLAY: Final = 0.2
"""What a recipe is advised to begin with that replays nothing: the share of the shipped recipes."""
MOST_REPLAY: Final = 0.5
"""Above it more rows are old than new, and another lever is worth more."""
FILE: Final = "FILE"
"""In lines that need rows which align cannot know of."""


@dataclass(frozen=True)
class Change:
    """One thing to change.

    Attributes:
        key: by which the evidence is found.
        what: to do, as a sentence.
        lines: of the recipe.
    """

    key: str
    what: str
    lines: tuple[Line, ...]


Maker = Callable[[StageFacts, RunFacts], Iterator[Change]]
"""Yields the change, or nothing where it cannot be made of this stage."""


def _rate_down(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    if facts.rate:
        yield _rate("rate_down", facts, "a lower", 1 / FAR, usual=(facts.times_usual or 0) > FAR)


def _rate_up(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    if facts.rate:
        yield _rate("rate_up", facts, "a higher", FAR, usual=(facts.times_usual or 1) < 1 / FAR)


def _rate_half(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    if facts.rate:
        yield _rate("rate_half", facts, "half of its", 0.5, usual=False)


def _rate(key: str, facts: StageFacts, words: str, factor: float, *, usual: bool) -> Change:
    assert facts.rate is not None
    new = facts.usual_rate if usual and facts.usual_rate else facts.rate * factor
    what = f"Train {facts.id} at {'the usual' if usual else words} learning rate."
    line = stage(facts.id, "training", "learning_rate", old=facts.rate, new=float(number(new)))
    return Change(key, what, (line,))


def _replay(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    """Replay where none is: what the recipe names with a ratio of 0, else the lab's own rows for the lab."""
    if not facts.replays or facts.replayed:
        return
    named, off = facts.value("replay"), facts.value("replay", "ratio")
    if isinstance(named, Mapping) and any(named.get(name) is not None for name in ("data", "stage", "self", "sources")):
        line = stage(facts.id, "replay", "ratio", old=off, new=FIRST_REPLAY)
        yield Change("replay", f"Replay in {facts.id} what the recipe names for it.", (line,))
        return
    lab = run.base == "lab"
    whose = "what the lab model was pretrained on" if lab else f"{FILE} holds rows of the kinds that were lost"
    lines = (
        stage(facts.id, "replay", "data", old=None, new="lab/general" if lab else FILE),
        stage(facts.id, "replay", "ratio", old=off, new=FIRST_REPLAY),
    )
    yield Change("replay", f"Replay old rows in {facts.id}: {whose}.", lines)


def _cover(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    """Rows of the kinds that were lost, beside those that are replayed."""
    missed = facts.missed
    replay = facts.value("replay")
    if not missed or not facts.replayed or not isinstance(replay, Mapping):
        return
    if replay.get("sources"):
        old = list(replay["sources"])
        line = stage(facts.id, "replay", "sources", old=None, new=[*map(_given, old), {"data": FILE}])
    elif replay.get("data"):
        old = [source(one) for one in several(replay["data"])]
        line = stage(facts.id, "replay", "data", old=old[0] if len(old) == 1 else old, new=[*old, FILE])
    else:
        return
    yield Change("cover", f"Replay rows of what was lost as well: {FILE} holds rows like {_names(missed)}.", (line,))


def _given(one: Any) -> Any:
    """A source of a written-out recipe without its nulls."""
    if not isinstance(one, Mapping):
        return one
    return {key: source(value) if key == "data" else value for key, value in one.items() if value is not None}


def _more_replay(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    stands = facts.number("replay", "ratio")
    ratio = stands or facts.replayed
    if ratio and ratio < MOST_REPLAY:
        line = stage(facts.id, "replay", "ratio", old=stands, new=min(MOST_REPLAY, 2 * ratio))
        yield Change("more_replay", f"Replay more of it in {facts.id}.", (line,))


def _closer(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    """`beta` back to the default where it is below, else twice as much; of PPO its `kl`."""
    what = f"Hold {facts.id} closer to the policy that it starts from"
    target, coef = facts.number("kl", "target"), facts.number("kl", "coef")
    if facts.beta is not None:
        new = facts.default_beta if facts.loose and facts.default_beta else 2 * facts.beta
        line, how = (
            stage(facts.id, "beta", old=facts.beta, new=new),
            "default `beta`" if facts.loose else "twice `beta`",
        )
        if new > facts.beta:
            yield Change("closer", f"{what}: the {how}." if facts.loose else f"{what}: {how}.", (line,))
    elif facts.value("kl", "controller") == "fixed" and coef:
        yield Change("closer", f"{what}.", (stage(facts.id, "kl", "coef", old=coef, new=2 * coef),))
    elif target:
        yield Change("closer", f"{what}.", (stage(facts.id, "kl", "target", old=target, new=target / 2),))


def _end_there(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    if facts.evaluation is None or facts.evaluation.lowest_step < 1:
        return
    line = stage(facts.id, "training", "max_steps", old=facts.steps, new=facts.evaluation.lowest_step)
    yield Change("end_there", f"End {facts.id} where its evaluation loss was lowest.", (line,))


def _steps(key: str, factor: float, words: str) -> Maker:
    def make(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
        if facts.steps > 1:
            new = round(facts.steps * factor)
            line = stage(facts.id, "training", "max_steps", old=facts.steps, new=new)
            yield Change(key, f"{words} {facts.id}.", (line,))

    return make


def _unmask(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    limit = facts.number("mask_above_perplexity")
    if limit is not None:
        line = stage(facts.id, "mask_above_perplexity", old=limit, new=None)
        yield Change("unmask", f"Train {facts.id} on all tokens of its answers.", (line,))


def _weaker(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    for name in facts.too_strong:
        path = ("ewc", "weight") if name == "ewc" else (name,)
        weight = facts.number(*path)
        if weight:
            line = stage(facts.id, *path, old=weight, new=weight / 10)
            yield Change("weaker", f"Give `{name}` a tenth of its weight in {facts.id}.", (line,))


def _early_stop(facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    if run.forgetting.get("early_stop"):
        return
    every = run.forgetting.get("every")
    lines = [] if every else [Line(("forgetting", "every"), None, "auto")]
    lines.append(Line(("forgetting", "early_stop"), False, True))
    yield Change("early_stop", "Measure while it trains, and keep the last weights within the limits.", tuple(lines))


CHANGES: Final[Mapping[str, Maker]] = {
    "rate_down": _rate_down,
    "rate_half": _rate_half,
    "rate_up": _rate_up,
    "replay": _replay,
    "cover": _cover,
    "more_replay": _more_replay,
    "closer": _closer,
    "end_there": _end_there,
    "half_steps": _steps("half_steps", 0.5, "Half of the steps of"),
    "double_steps": _steps("double_steps", 2, "Twice the steps of"),
    "early_stop": _early_stop,
    "unmask": _unmask,
    "weaker": _weaker,
}


def make(keys: Sequence[str], facts: StageFacts, run: RunFacts) -> Iterator[Change]:
    """The changes of these keys that can be made of the stage, in this order."""
    for key in keys:
        yield from CHANGES[key](facts, run)


def _names(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
