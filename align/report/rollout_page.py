"""What the report says of the rollouts of a stage: figures from first to last, alarms, answers early and late."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from align.report import numbers
from align.report.alarms import words
from align.report.schema import StageRecord
from align.rl.rollouts import SAMPLES, Rollout, Sampled

NONE: Final = "-"


@dataclass(frozen=True)
class Trend:
    """One figure: in the first rollout, in the last, and its mean over the last third of them."""

    name: str
    first: str
    last: str
    late: str
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """One sampled answer."""

    prompt: str
    text: str
    score: str  # empty where nothing scores answers
    kl: str  # empty where there is no reference


@dataclass(frozen=True)
class Finding:
    """One alarm: its name in words, what raised it, answers of its rollout, and what to try."""

    name: str
    rollout: int
    figure: str
    remedy: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Column:
    """Answers of one rollout."""

    title: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class RolloutsPage:
    """Everything that is said of the rollouts of a stage. `samples` are the first rollout and, if there are more, the
    last; `asked` is how many answers of each are shown; `scored`, whether answers have scores."""

    verdict: str
    trends: tuple[Trend, ...]
    findings: tuple[Finding, ...]
    samples: tuple[Column, ...]
    asked: int
    scored: bool = True


def rollouts_page(stage: StageRecord) -> RolloutsPage | None:
    """None for a stage that has no rollouts."""
    rollouts = stage.rollouts
    if not rollouts:
        return None
    found = tuple(_findings(rollouts))
    count = f"{len(rollouts):,} rollout{'s' if len(rollouts) > 1 else ''}"
    alarms = f"{len(found)} alarm{'s' if len(found) > 1 else ''}" if found else "no alarm"
    ends = (rollouts[0], rollouts[-1]) if len(rollouts) > 1 else rollouts
    samples = tuple(Column(f"Rollout {one.number}", _answers(one.samples)) for one in ends if one.samples)
    return RolloutsPage(
        verdict=f"{alarms} in {count}",
        trends=tuple(_trends(rollouts, kl_target(stage), found)),
        findings=found,
        samples=samples,
        asked=max((len(column.answers) for column in samples), default=0),
        scored=any(one.score is not None for one in rollouts),
    )


def kl_target(stage: StageRecord) -> float | None:
    """The KL that the stage was steered to, where it was and has said so."""
    value = stage.outcome.metrics.get("kl_target") if stage.outcome else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def figures(rollouts: Iterable[Rollout], name: str) -> list[tuple[int, float]]:
    """The points (rollout, figure) of one field of `Rollout`; what is None or no finite number is left out."""
    found = [(one.number, getattr(one, name)) for one in rollouts]
    return [(number, value) for number, value in found if value is not None and math.isfinite(value)]


def _findings(rollouts: Iterable[Rollout]) -> Iterable[Finding]:
    for one in rollouts:
        for alarm in one.alarms:
            yield Finding(words(alarm.name), alarm.rollout, alarm.figure, alarm.remedy, _answers(one.samples))


def _answers(samples: Sequence[Sampled]) -> tuple[Answer, ...]:
    return tuple(
        Answer(
            sample.prompt,
            sample.completion,
            "" if sample.score is None else numbers.plain(sample.score),
            "" if sample.kl is None else numbers.plain(sample.kl),
        )
        for sample in samples[:SAMPLES]
    )


def _trends(rollouts: Sequence[Rollout], target: float | None, found: Sequence[Finding]) -> Iterable[Trend]:
    names = list(dict.fromkeys(name for one in rollouts for name in one.rewards))
    rows: list[tuple[str, str, Callable[[Rollout], float | None]]] = [
        ("Score", "", lambda one: one.score),
        ("Standard deviation of the score", "", lambda one: one.score_std),
        *((f"Reward {name}", "", _reward(name)) for name in names if len(names) > 1),
        ("KL to the reference, nats", "" if target is None else f"target {target:g}", lambda one: one.kl),
        ("Coefficient of the KL penalty", "", lambda one: one.coef),
        ("Tokens an answer", "", lambda one: one.length),
        *((("Divergence from the teacher", "", lambda one: one.policy_loss),) if _distilled(rollouts) else ()),
        ("Entropy of a token, nats", "", lambda one: one.entropy),
        ("Explained variance of the critic", "", lambda one: one.explained_variance),
    ]
    for name, note, figure in rows:
        values = [figure(one) for one in rollouts]
        if any(value is not None for value in values):
            yield Trend(name, _text(values[0]), _text(values[-1]), _late(values), note)
    alarms = ", ".join(f"{finding.name} (rollout {finding.rollout})" for finding in found)
    yield Trend("Alarms", "", "", "", alarms or "none")


def _distilled(rollouts: Sequence[Rollout]) -> bool:
    """Whether the answers are compared with a teacher, and nothing scores them."""
    return all(one.score is None for one in rollouts)


def _reward(name: str) -> Callable[[Rollout], float | None]:
    return lambda one: one.rewards.get(name)


def _late(values: Sequence[float | None]) -> str:
    """The mean over the last third."""
    known = [value for value in values[-max(1, len(values) // 3) :] if value is not None]
    return _text(sum(known) / len(known)) if known else NONE


def _text(value: float | None) -> str:
    return NONE if value is None else numbers.plain(float(value))
