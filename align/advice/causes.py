"""Why a stage forgot, or learnt nothing: the cause in one sentence, and the keys of the changes that mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from align.advice.facts import FAR, StageFacts
from align.advice.lines import number

SMALL_KL: Final = 0.05
"""Nats per answer token. A stage that moved its policy no further on the task's own prompts has hardly changed there:
on a real model 30 gentle steps of LoRA came to 0.042 (docs/forgetting.md)."""
MANY: Final = 10
"""Times the usual learning rate, from which on the rate is to blame whatever else a stage shows."""
MANY_STEPS: Final = 100
"""Steps at about the usual rate that would have moved the training loss."""
FELL: Final = 0.7
"""Of its start: a training loss that ended below this share of it was learning, only not for long enough."""
MUCH_MASKED: Final = 0.1
"""Of the tokens of its answers: what a stage does not train, it does not learn."""
NAMED: Final = 3

CHANGES: Final[dict[str, tuple[str, ...]]] = {
    "rate_too_high": ("rate_down", "early_stop", "half_steps", "replay"),
    "drifted": ("rate_down", "closer", "replay", "half_steps", "early_stop"),
    "held_too_loosely": ("closer", "rate_down", "replay", "half_steps", "early_stop"),
    "small_kl": ("replay", "cover", "more_replay", "rate_half"),
    "overfitted": ("end_there", "rate_half", "more_replay", "early_stop"),
    "nothing_replayed": ("replay", "rate_half", "early_stop", "half_steps"),
    "not_covered": ("cover", "rate_half", "early_stop", "half_steps"),
    "replay_too_little": ("more_replay", "rate_half", "early_stop", "half_steps"),
    "step_too_large": ("rate_half", "early_stop", "half_steps"),
    "held_back": ("unmask", "weaker", "double_steps"),
    "rate_too_low": ("rate_up", "double_steps"),
    "too_short": ("double_steps", "rate_up"),
}
"""By cause: what is worth changing, the most likely to help first."""


@dataclass(frozen=True)
class Cause:
    """What went wrong in a stage.

    Attributes:
        key: of `CHANGES`.
        sentence: names it, with the figures that show it.
    """

    key: str
    stage: str
    sentence: str

    @property
    def changes(self) -> tuple[str, ...]:
        """What is worth changing."""
        return CHANGES[self.key]


def causes(facts: StageFacts) -> list[Cause]:
    """Of what was forgotten one, the likeliest; an overfitted stage is told as well. None where nothing went wrong."""
    found = [_of_forgetting(facts)] if facts.forgot else []
    if facts.overfitted and not any(cause.key == "overfitted" for cause in found):
        found.append(Cause("overfitted", facts.id, f"{facts.id} {_overfitted(facts)}."))
    return found or ([_of_learning(facts)] if facts.learnt is False else [])


def _of_forgetting(facts: StageFacts) -> Cause:
    key, why = _why(facts)
    return Cause(key, facts.id, f"{_forgot(facts)}{why}.")


def _why(facts: StageFacts) -> tuple[str, str]:
    """The cause of forgetting, and the rest of its sentence."""
    if facts.holds_a_reference:
        loose = facts.loose and (facts.times_usual or 0) <= FAR
        why = f": it moved away from the policy that it started from{_distance(facts)}{_held(facts)}"
        return "held_too_loosely" if loose else "drifted", why
    times = facts.times_usual or 0.0
    if facts.rate and (times >= MANY or (facts.learnt is False and times >= 1)):
        nothing = " and learnt nothing of its task" if facts.learnt is False else ""
        return "rate_too_high", f"{nothing}: its learning rate, {_against_usual(facts)}, is too high{_loss(facts)}"
    if facts.kl is not None and facts.kl - (facts.kl_before or 0.0) < SMALL_KL:
        kl = f"{facts.kl:.2g} nats per token"
        return (
            "small_kl",
            f" although it hardly moved on the prompts of its task (KL to the base {kl}): look at what broke",
        )
    if facts.replays and not facts.replayed:
        return "nothing_replayed", ": nothing of what the base could do was replayed in it"
    share = f" although {facts.replayed:.0%} of its rows were replayed"
    covered = [lost.name for lost in facts.lost if lost.covered]
    known = any(lost.covered is not None for lost in facts.lost)
    if facts.replayed and known and 2 * len(facts.missed) >= len(facts.lost):
        return "not_covered", f"{share}: they do not cover {join(facts.missed)}"
    if facts.overfitted:
        return "overfitted", f": it {_overfitted(facts)}"
    if facts.replayed and not known and facts.lost and not facts.everything_lost:
        return "not_covered", f"{share}, and kept other skills: they seem to hold nothing like these"
    if facts.replayed:
        return "replay_too_little", f"{share}, which cover {join(covered)}" if covered else share
    return "step_too_large", f": it was too large a step{_distance(facts)}"


def _forgot(facts: StageFacts) -> str:
    lost = join([lost.name for lost in facts.lost]) or "some of every skill"
    mean = f" (mean of the skills {facts.mean[0]:.3f} -> {facts.mean[1]:.3f})" if facts.mean else ""
    return f"{facts.id} forgot {lost}{mean}"


def _distance(facts: StageFacts) -> str:
    if facts.kl is None:
        return ""
    before = f"{facts.kl_before:.3g} -> " if facts.kl_before is not None else ""
    return f" (KL to the base {before}{facts.kl:.3g} nats per token)"


def _held(facts: StageFacts) -> str:
    """What let a preference or RL stage go far."""
    said = []
    if facts.loose:
        said.append(f"its `beta` of {facts.beta:g} is below the default of {facts.default_beta:g}")
    if (facts.times_usual or 0) > 1.5:
        said.append(f"its learning rate is {_against_usual(facts)}")
    said += [f"it raised the alarm {name}" for name, _ in facts.alarms]
    return f"; {' and '.join(said)}" if said else ""


def _against_usual(facts: StageFacts) -> str:
    if facts.rate is None or facts.times_usual is None or facts.usual_rate is None:
        return number(facts.rate or 0.0)
    usual, times = number(facts.usual_rate), facts.times_usual
    if 0.67 < times < 1.5:
        return f"{number(facts.rate)}, about the usual one"
    share = f"{times:.3g} times" if times >= 1 else f"1/{1 / times:.0f} of"
    return f"{number(facts.rate)}, {share} the usual {usual}"


def _loss(facts: StageFacts) -> str:
    """The training loss; of a stage that is rewarded it tells nothing."""
    if facts.train is None or facts.value("reward") is not None:
        return ""
    return f"; its training loss went from {facts.train[0]:.3g} to {facts.train[1]:.3g}"


def _overfitted(facts: StageFacts) -> str:
    losses = facts.evaluation
    assert losses is not None
    epochs = f", {facts.epochs:.2g} epochs" if facts.epochs else ""
    return (
        f"overfitted: its evaluation loss rose from {losses.lowest:.3g} at step {losses.lowest_step} to "
        f"{losses.last:.3g} at its end (step {facts.steps}{epochs})"
    )


def _of_learning(facts: StageFacts) -> Cause:
    """Nothing was lost, and nothing learnt: a remedy is to blame that is stronger than the task, else the rate if it is
    low, or if many steps moved nothing."""
    said = f"{facts.id} forgot nothing and learnt nothing for certain"
    times = facts.times_usual or 1.0
    if times >= 1 / FAR and (held := _held_back(facts)):
        return Cause("held_back", facts.id, f"{said}: {join(held)}.")
    moved = facts.train is not None and facts.train[1] < FELL * facts.train[0]
    if times < 1 / FAR or (times < FAR and facts.steps >= MANY_STEPS and not moved):
        return Cause(
            "rate_too_low", facts.id, f"{said}: its learning rate, {_against_usual(facts)}, is too low{_loss(facts)}."
        )
    rate = _against_usual(facts)
    at = f" at a learning rate of {rate}{',' if ',' in rate else ''}" if facts.rate else ""
    return Cause("too_short", facts.id, f"{said}: {facts.steps} steps{at} are too few{_loss(facts)}.")


def _held_back(facts: StageFacts) -> list[str]:
    """The remedies that keep a stage from its task, with their figures."""
    said = [f"{facts.masked:.0%} of the tokens of its answers were masked"] if facts.masked > MUCH_MASKED else []
    return said + [f"`{name}` pulled {facts.held[name]:.2g} times as hard as the task" for name in facts.too_strong]


def join(names: Sequence[str]) -> str:
    """Names as in a sentence; of many the first few, and how many more there are."""
    shown = list(names[:NAMED])
    if len(names) > NAMED:
        shown.append(f"{len(names) - NAMED} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
