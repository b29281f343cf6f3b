"""Judges each rollout of PPO as it is recorded: what goes wrong, by which figure, and what to try.

Depends on nothing but the rollouts given, so a resumed run is judged as one that was not interrupted. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from align.forgetting.statistics import wilson
from align.rl.rollouts import Alarm, Rollout, explained_variance

START: Final = 3
"""Rollouts at the beginning whose mean is the figure "at the start". Ours: one alone is noise."""

IN_A_ROW: Final = 3
"""Rollouts in a row that must be beyond a limit, where one alone may be noise. Ours."""

KL_FAR: Final = 2.0
"""Reward hacking: KL / target. Past some KL the proxy reward rises while the true one falls (Gao et al. 2022, arXiv
2210.10760, figure 1); where, depends on the reward. The controller overshoots; twice the target is ours."""

LENGTH_FAR: Final = 1.5
"""Reward hacking: tokens of an answer / those at the start. Hacked answers grow longer while KL rises (Zheng et al.
2023, arXiv 2307.04964; Singhal et al. 2023, arXiv 2310.03716); the size is ours."""

REPETITION_FAR: Final = 0.2
"""Reward hacking: share of repeated token pairs above that at the start. Ours."""

RISE_ERRORS: Final = 2.0
"""The score counts as still rising if the last rollouts' mean is this many standard errors above that before them."""

DISTINCT_LEFT: Final = 0.5
"""Mode collapse: distinct_2 / that at the start. One answer to every prompt brings it to 1 / answers; a policy that is
more certain, but answers each prompt by itself, keeps it. The half is ours."""

ENTROPY_LEFT: Final = 0.1
"""Mode collapse: entropy / that at the start. It falls in every run that learns, so half says nothing; a policy without
any explores no more and its score comes to rest (Cui et al. 2025, arXiv 2505.22617). The tenth is ours."""

KL_EXPLODED: Final = 4.0
"""KL explosion: KL / target in a single rollout. Ours: twice what `KL_FAR` allows for longer."""

KL_LIMIT: Final = 40.0
"""KL explosion where there is no target, nats an answer: `KL_EXPLODED` times 10, the highest target that is usual."""

KL_NEGATIVE: Final = -10.0
"""KL explosion, nats an answer: a KL is never negative, its estimate may be, but by little; more of it comes before
failure (trl issues 235 and 1857). The size is ours."""

RATIO_EXPLODED: Final = 10.0
"""KL explosion: new / old probability of a token. trl's PPO skipped a batch whose mean ratio was above it (trl pull
request 488); we see the largest, hence only `IN_A_ROW`."""

CRITIC_ROLLOUTS: Final = 10
"""Dead critic: rollouts after `critic_warmup` before the critic is judged. Ours."""

CRITIC_WINDOW: Final = 5
"""Dead critic: rollouts whose explained variance is judged, all together, against 0, which a constant reaches (by
definition: 1 - Var(returns - values) / Var(returns)). Not the mean of their figures: where the returns of one rollout
hardly vary, its figure is far below 0 whatever the critic does, and alone outweighs four good ones."""

CRITIC_NEAR: Final = 0.1
"""Dead critic: what it is off by / the variance of the returns at the start. Where all answers come to score alike,
returns vary by less than any critic is exact, and one that is off by so little is alive. The tenth is ours."""

CLIPPED: Final = 0.3
"""Share of clipped tokens. Ours: from them nothing is learnt (Schulman et al. 2017, arXiv 1707.06347, eq. 7)."""

CUT_OFF: Final = 0.2
"""Share of answers without an end. Ours."""

CUT_OFF_RISE: Final = 0.1
"""How far that share must be above the start's: a limit that is short from the beginning is not the policy's doing."""

NEVER_ENDS: Final = 0.8
"""Share of answers without an end at the start from which on nearly all are cut off: what the reward sees is a
beginning, and the policy learns nothing of ending. Ours."""

FLAT: Final = 1e-8
"""Standard deviation of the score that counts as none, in its units."""

FLAT_SHARE: Final = 1e-6
"""The same as a share of the score: what float32 leaves of a constant."""

REMEDIES: Final = {
    "not_finite": "lower `training.learning_rate` and `critic_learning_rate`; if it is the score, fix `reward`",
    "kl_explosion": "lower `training.learning_rate` or `training.num_iterations`, set `target_kl`, or raise `kl.coef`; "
    "if the KL is negative, leave out `training.top_k` and `training.top_p`",
    "reward_hacking": "read the samples: if the score rewards what you would not, fix `reward` or add another; raise "
    "`kl.coef` or lower `kl.target`; if answers only grow longer, set `missing_eos_penalty` or lower "
    "`training.max_completion_length`",
    "mode_collapse": "raise `kl.coef` or lower `kl.target`, lower `training.learning_rate`, raise "
    "`training.temperature`; check whether `reward` favours one answer for every prompt",
    "dead_critic": "raise `critic_learning_rate`, or train the critic alone for longer: raise `critic_warmup`",
    "clipped": "lower `training.learning_rate` or `training.num_iterations`, or set `target_kl`",
    "no_end": "raise `training.max_completion_length`; if the answers are long enough, check in the samples whether "
    "the model ends them at all: an earlier stage must have trained the end token of its chat template",
    "missing_eos": "set `missing_eos_penalty`; if good answers need more room, raise `training.max_completion_length`",
    "flat_reward": "make `reward` distinguish between answers, or raise `training.temperature` so that they differ; if "
    "the score is at its maximum, there is nothing left to learn",
}
"""What to try, by the name of the alarm, in the order in which alarms are given."""


class Health:
    """Judges rollouts.

    Args:
        kl_target: the KL that the run is steered to, nats an answer; None where nothing steers it.
        warmup: rollouts at the start in which the critic alone is trained.
    """

    def __init__(self, kl_target: float | None, warmup: int) -> None:
        self.kl_target, self.warmup = kl_target, warmup

    def judge(self, history: list[Rollout], now: Rollout) -> list[Alarm]:
        """The alarms that a rollout raises, after those before it; one that was raised before is not raised again."""
        every = [*history, now]
        found = {
            "not_finite": _not_finite(now),
            "kl_explosion": self._kl_explosion(every),
            "reward_hacking": self._reward_hacking(every),
            "mode_collapse": _mode_collapse(every),
            "dead_critic": self._dead_critic(every),
            "clipped": _clipped(every),
            "no_end": _no_end(every),
            "missing_eos": _missing_eos(every),
            "flat_reward": _flat_reward(every),
        }
        standing = {alarm.name for one in history for alarm in one.alarms}
        return [
            Alarm(name, now.number, found[name] or "", remedy)
            for name, remedy in REMEDIES.items()
            if found[name] and name not in standing
        ]

    def _kl_explosion(self, every: list[Rollout]) -> str | None:
        kl = every[-1].kl
        if kl is not None and not math.isfinite(kl):
            return f"KL is {kl}"
        if kl is not None and kl < KL_NEGATIVE:
            return f"KL {kl:.3g} nats, below {KL_NEGATIVE:g}: a KL is never negative"
        if kl is not None and self.kl_target is None and kl > KL_LIMIT:
            return f"KL {kl:.3g} nats, more than {KL_LIMIT:g}"
        if kl is not None and self.kl_target is not None and kl > KL_EXPLODED * self.kl_target:
            return f"KL {kl:.3g} nats, more than {KL_EXPLODED:g} times the target {self.kl_target:.3g}"
        ratio = _lasting(every, "ratio_max", lambda x: x > RATIO_EXPLODED)
        if ratio is None:
            return None
        return f"a token's probability changed {ratio:.3g}-fold, more than {RATIO_EXPLODED:g}, {_SO_LONG}"

    def _reward_hacking(self, every: list[Rollout]) -> str | None:
        rise = _rise(every)
        if rise is None:
            return None
        first, later, signs = start(every), every[START:], []
        if self.kl_target is not None:
            limit = KL_FAR * self.kl_target
            kl = _lasting(later, "kl", lambda x: x > limit)
            if kl is not None:
                signs.append(f"KL {kl:.3g} nats, more than {KL_FAR:g} times the target {self.kl_target:.3g}")
        length = _lasting(later, "length", lambda x: x > LENGTH_FAR * first.get("length", math.inf))
        if length is not None:
            was = first["length"]
            signs.append(f"{length:.3g} tokens per answer, more than {LENGTH_FAR:g} times the {was:.3g} at the start")
        share = _lasting(later, "repetition", lambda x: x > first.get("repetition", math.inf) + REPETITION_FAR)
        if share is not None:
            was = first["repetition"]
            signs.append(f"repetition {share:.2f}, more than {REPETITION_FAR:g} above the {was:.2f} at the start")
        if not signs:
            return None
        return f"{', and '.join(signs)}, {_SO_LONG} while the score rose from {rise[0]:.3g} to {rise[1]:.3g}"

    def _dead_critic(self, every: list[Rollout]) -> str | None:
        learnt = [one for one in every if one.number > self.warmup]
        window = learnt[-CRITIC_WINDOW:]
        known = _figures(window, "explained_variance")
        if len(learnt) < CRITIC_ROLLOUTS or len(known) <= CRITIC_WINDOW // 2:
            return None
        figure = explained_variance(window)
        if figure is None or figure >= 0 or _near(every, window, figure):
            return None
        return (
            f"explained variance {figure:.3g} over {CRITIC_WINDOW} rollouts, below 0: a constant would predict better"
        )


def _near(every: list[Rollout], window: list[Rollout], figure: float) -> bool:
    """Whether a critic of that explained variance is off by next to nothing, beside how the returns varied at first."""
    first, now = ([std**2 for std in _figures(some, "returns_std")] for some in (every[:START], window))
    if len(first) < START or len(now) < len(window):
        return False
    return (1 - figure) * sum(now) / len(now) < CRITIC_NEAR * sum(first) / len(first)


def start(history: Sequence[Rollout]) -> dict[str, float]:
    """The figures at the start, by their names in `Rollout`: means over the first rollouts that have them, `START` at
    most. Empty before there are so many rollouts; a figure that none has is left out."""
    if len(history) < START:
        return {}
    names = ("score", "score_std", "length", "entropy", "distinct_2", "repetition", "missing_eos")
    found = {name: _figures(history[:START], name) for name in names}
    return {name: sum(values) / len(values) for name, values in found.items() if values}


_SO_LONG: Final = f"for {IN_A_ROW} rollouts"


def _figures(rollouts: Iterable[Rollout], name: str) -> list[float]:
    """Those of a name that are finite numbers."""
    found = [getattr(one, name) for one in rollouts]
    return [float(value) for value in found if value is not None and math.isfinite(value)]


def _lasting(rollouts: Sequence[Rollout], name: str, beyond: Callable[[float], bool]) -> float | None:
    """The last figure of a name, if it is beyond a limit for IN_A_ROW rollouts; None and NaN are beyond no limit."""
    found = [getattr(one, name) for one in rollouts[-IN_A_ROW:]]
    lasts = len(found) == IN_A_ROW and all(value is not None and beyond(value) for value in found)
    return float(found[-1]) if lasts else None


def _rise(every: list[Rollout]) -> tuple[float, float] | None:
    """The mean score that the last rollouts rose from, and theirs; None if they did not rise.

    Risen: by more than a standard deviation of the start's scores. Still rising: by more than the noise of the means.
    """
    first, recent, before = start(every), every[-IN_A_ROW:], every[-2 * IN_A_ROW : -IN_A_ROW]
    now, was = _figures(recent, "score"), _figures(before, "score")
    if len(now) < IN_A_ROW or "score" not in first:
        return None
    score = sum(now) / IN_A_ROW
    if score > first["score"] + first.get("score_std", math.inf):
        return first["score"], score
    if len(was) < IN_A_ROW:
        return None
    variance = sum((one.score_std or 0.0) ** 2 / max(1, one.episodes) for one in (*before, *recent)) / IN_A_ROW**2
    earlier = sum(was) / IN_A_ROW
    return (earlier, score) if score - earlier > RISE_ERRORS * math.sqrt(variance) else None


def _not_finite(now: Rollout) -> str | None:
    figures = {"score": now.score, "policy loss": now.policy_loss, "value loss": now.value_loss}
    broken = [f"{name} is {x}" for name, x in figures.items() if x is not None and not math.isfinite(x)]
    return " and the ".join(["the " + broken[0], *broken[1:]]) if broken else None


def _mode_collapse(every: list[Rollout]) -> str | None:
    """Either sign is enough: one answer to all prompts (distinct_2), or no choice left at any token (entropy)."""
    first, later = start(every), every[START:]
    share = _lasting(later, "distinct_2", lambda x: x < DISTINCT_LEFT * first.get("distinct_2", 0.0))
    if share is not None:
        was = first["distinct_2"]
        return f"{share:.2g} distinct token pairs, below {DISTINCT_LEFT:g} of the {was:.2g} at the start, {_SO_LONG}"
    entropy = _lasting(later, "entropy", lambda x: x < ENTROPY_LEFT * first.get("entropy", 0.0))
    if entropy is not None:
        was = first["entropy"]
        return f"entropy {entropy:.2g} nats, below {ENTROPY_LEFT:g} of the {was:.2g} at the start, {_SO_LONG}"
    return None


def _clipped(every: list[Rollout]) -> str | None:
    share = _lasting(every, "clip_fraction", lambda x: x > CLIPPED)
    return None if share is None else f"{share:.1%} of the tokens clipped, more than {CLIPPED:.0%}, {_SO_LONG}"


def _no_end(every: list[Rollout]) -> str | None:
    """Judged at the start alone, as soon as its answers are enough to be sure that more than half never end."""
    if len(every) > START:
        return None
    known = [one for one in every if math.isfinite(one.missing_eos)]
    answers = sum(one.episodes for one in known)
    if not answers:
        return None
    share = sum(one.missing_eos * one.episodes for one in known) / answers
    low, high = wilson(share, answers)
    if share < NEVER_ENDS or low <= 0.5:
        return None
    interval = f"95 % interval {low:.1%} to {high:.1%}"
    return f"{share:.1%} of the first {answers:,} answers cut off at the limit ({interval}), {NEVER_ENDS:.0%} or more"


def _missing_eos(every: list[Rollout]) -> str | None:
    was = start(every).get("missing_eos", math.inf)
    limit = max(CUT_OFF, was + CUT_OFF_RISE)
    share = _lasting(every[START:], "missing_eos", lambda x: x > limit)
    if share is None:
        return None
    return f"{share:.1%} of the answers cut off, more than {limit:.1%} ({was:.1%} at the start), {_SO_LONG}"


def _flat_reward(every: list[Rollout]) -> str | None:
    recent = every[-IN_A_ROW:]
    if len(recent) < IN_A_ROW or not all(_is_flat(one) for one in recent):
        return None
    return f"every answer scored {recent[-1].score:.3g}, a standard deviation below {FLAT:g}, {_SO_LONG}"


def _is_flat(one: Rollout) -> bool:
    """Whether all answers of a rollout have the same score; not where they have none."""
    if one.score is None or one.score_std is None:
        return False
    return one.score_std < max(FLAT, FLAT_SHARE * abs(one.score))
