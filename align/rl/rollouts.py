"""What is known of each rollout, one line of `rollouts.jsonl` each: read by the report, and by whoever is curious.

A rollout is one batch of sampled answers and the updates made from it. No torch: the report reads it too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from align.run_folder import files

SAMPLES = 3  # answers kept of each rollout


@dataclass(frozen=True)
class Sampled:
    """One answer: its prompt and its text, its score, and its KL to the reference in nats; None if it has none."""

    prompt: str
    completion: str
    score: float | None
    kl: float | None


@dataclass(frozen=True)
class Alarm:
    """Something that goes wrong in a run.

    Attributes:
        name: `reward_hacking`, `mode_collapse`, `kl_explosion`, `dead_critic`, ...
        rollout: the number of the rollout in which it was raised, from 1.
        figure: the measurement that raised it, with its limit, as a sentence: "KL 14.2, more than twice the target 3".
        remedy: what to try.
    """

    name: str
    rollout: int
    figure: str
    remedy: str


@dataclass
class Rollout:
    """One rollout. Means are over the answers of all processes; a figure that a trainer has not is None.

    Attributes:
        number: from 1.
        step: optimizer steps made before it.
        episodes: its answers.
        score: mean of the weighted rewards, without KL penalty; `score_std` their standard deviation. Both are None
            where nothing scores answers.
        rewards: mean of each reward by name; None for one that scored no answer.
        kl: mean over answers of log pi(y|x) - log ref(y|x), nats.
        coef: of the KL penalty in this rollout's rewards.
        length: mean tokens of an answer.
        entropy: mean entropy of the next token, nats.
        distinct_2: different pairs of neighbouring tokens, as a share of all pairs in the rollout's answers.
        repetition: mean over answers of the share of token pairs that repeat an earlier pair of the same answer.
        missing_eos: share of answers cut off at the limit.
        explained_variance: of the returns by the critic, before the updates: 1 - Var(returns - values) / Var(returns).
        returns_std: standard deviation of a token's return, in units of the score.
        approx_kl: KL(old, new) per token after the last update, by k3.
        clip_fraction: share of tokens whose ratio was clipped, mean over the updates.
        ratio_max: the largest probability ratio seen in the updates.
        policy_loss, value_loss: means over the updates.
        stopped: share of the updates that `target_kl` skipped.
        samples: a few answers, chosen by position, not by score.
        alarms: raised by this rollout.
    """

    number: int
    step: int
    episodes: int
    score: float | None
    score_std: float | None
    rewards: dict[str, float | None]
    kl: float | None = None
    coef: float | None = None
    length: float = 0.0
    entropy: float | None = None
    distinct_2: float | None = None
    repetition: float | None = None
    missing_eos: float = 0.0
    explained_variance: float | None = None
    returns_std: float | None = None
    approx_kl: float | None = None
    clip_fraction: float | None = None
    ratio_max: float | None = None
    policy_loss: float | None = None
    value_loss: float | None = None
    stopped: float | None = None
    samples: list[Sampled] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)


_NAMES = {one.name for one in fields(Rollout)}


def distinct_2(answers: Iterable[Sequence[int]]) -> float | None:
    """Different pairs of neighbouring tokens over all answers, as a share of all pairs; None where there are none."""
    pairs = [pair for ids in answers for pair in pairwise(ids)]
    return len(set(pairs)) / len(pairs) if pairs else None


def repetition(answers: Iterable[Sequence[int]]) -> float | None:
    """Mean over answers of the share of token pairs that repeat an earlier pair of the same answer."""
    shares = []
    for ids in answers:
        pairs = list(pairwise(ids))
        if pairs:
            shares.append(1 - len(set(pairs)) / len(pairs))
    return sum(shares) / len(shares) if shares else None


def explained_variance(rollouts: Sequence[Rollout]) -> float | None:
    """Of the returns by the critic over several rollouts: 1 - the sum of Var(returns - values) / that of Var(returns).

    A rollout whose returns hardly vary hardly counts: its own figure is far below 0 whatever the critic does.

    Returns:
        None where no rollout has a figure.
    """
    known = [
        (one.episodes * (1.0 if one.returns_std is None else one.returns_std**2), one.explained_variance)
        for one in rollouts
        if one.explained_variance is not None and math.isfinite(one.explained_variance)
    ]
    total = sum(weight for weight, _ in known)
    return sum(weight * figure for weight, figure in known) / total if total else None


def read(path: Path) -> list[Rollout]:
    """The rollouts of a stage; a line torn by a crash is no rollout yet."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found.append(from_json(json.loads(line)))
        except (json.JSONDecodeError, TypeError, KeyError):
            continue
    return found


def from_json(entry: dict[str, Any]) -> Rollout:
    """A rollout as `dataclasses.asdict` gave it."""
    samples = [Sampled(**sample) for sample in entry["samples"]]
    alarms = [Alarm(**alarm) for alarm in entry["alarms"]]
    known = {name: value for name, value in entry.items() if name in _NAMES}  # a later version may write more
    return Rollout(**{**known, "samples": samples, "alarms": alarms})


def append(path: Path, rollout: Rollout) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(rollout)) + "\n")


def keep(path: Path, numbers: int) -> list[Rollout]:
    """Drop what comes after rollout `numbers`, as a resumed run does again; returns what is left."""
    kept = [rollout for rollout in read(path) if rollout.number <= numbers]
    if path.is_file():
        files.write_text(path, "".join(json.dumps(asdict(one)) + "\n" for one in kept))
    return kept
