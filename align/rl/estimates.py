"""The figures that PPO learns from: KL to the reference, shaped rewards, advantages, clipped losses, the KL controller.

Tensors are float32 of (answers, tokens), answers padded on the right. `mask` is 1 at real tokens and 0 at padding; an
answer may have no real token. What stands in padding, inf and nan included, changes nothing at a real token.
Log-probabilities and KL are in nats. A `reduce` sums a tensor over all processes, each of which must make the call;
with one it is the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

Reduce = Callable[[torch.Tensor], torch.Tensor]

_EPSILON = 1e-8  # added to a variance, so that what does not vary is not blown up
_ROUNDING = 1e-6  # a deviation of this share of the mean is what float32 leaves of a constant
_ERROR_LIMIT = 0.2  # of the controller's relative error, as Ziegler et al. have it


def kl(log_probs: torch.Tensor, reference: torch.Tensor, estimator: str) -> torch.Tensor:
    """KL(policy, reference) per token, estimated from tokens that the policy sampled.

    With d = log pi(y) - log ref(y): `k1` = d, unbiased and noisy; `k2` = d^2 / 2, biased, but little where the two are
    near; `k3` = exp(-d) - 1 + d, unbiased and never negative (Schulman 2020, joschu.net/blog/kl-approx.html).

    Args:
        log_probs, reference: (answers, tokens), of the sampled tokens.

    Returns:
        (answers, tokens), nats. k3 of garbage in padding may be inf: choose the real tokens, do not multiply by a mask.

    Raises:
        ValueError: there is no such estimator.
    """
    difference = log_probs - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return torch.expm1(-difference) + difference  # exp - 1 would lose what is left of a small difference
    raise ValueError(f"there is no estimator '{estimator}' of KL: k1, k2 or k3")


def shaped(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, coef: float) -> torch.Tensor:
    """Rewards: -coef KL at every token, and the score of the answer at its last (Ziegler et al. 2019, arXiv 1909.08593,
    section 2; Stiennon et al. 2020, arXiv 2009.01325, section 3.4).

    Args:
        scores: (answers).
        kl: (answers, tokens), nats.
        coef: score per nat.

    Returns:
        (answers, tokens), in units of the score; 0 at padding, so an answer without a real token gets nothing.
    """
    real = mask > 0
    to_come = real.flip(-1).cumsum(-1).flip(-1)  # real tokens from here on
    rewards = -coef * kl + torch.where(to_come == 1, scores.unsqueeze(-1), 0.0)
    return torch.where(real, rewards, 0.0)


def advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation: A_t = sum_l (gamma lam)^l delta_(t+l), delta_t = r_t + gamma V_(t+1) - V_t
    (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    An answer ends with its last real token, after which the value is 0.

    Args:
        rewards, values: (answers, tokens), in units of the score.
        gamma: discount per token.
        lam: 0 trusts the critic's next value, 1 the rewards alone.

    Returns:
        Advantages and returns, which are advantages + values; (answers, tokens) each, 0 at padding.
    """
    real = mask > 0
    rewards, values = torch.where(real, rewards, 0.0), torch.where(real, values, 0.0)
    following = torch.nn.functional.pad(values[..., 1:], (0, 1))
    deltas = rewards + gamma * following - values
    found = torch.zeros_like(deltas)
    carried = torch.zeros_like(deltas[..., :1]).squeeze(-1)
    for place in reversed(range(deltas.shape[-1])):
        carried = deltas[..., place] + gamma * lam * carried
        found[..., place] = carried
    return found, found + values


def whiten(x: torch.Tensor, mask: torch.Tensor, reduce: Reduce, shift_mean: bool = True) -> torch.Tensor:
    """x scaled to mean 0 and variance 1 over the real tokens of all processes, the variance with Bessel's correction.

    So it is done to advantages and, with the mean kept, to rewards by the program of Ziegler et al. 2019
    (openai/lm-human-preferences, `train_policy.py`). What does not vary becomes 0, or stays at its mean.

    Args:
        x: (answers, tokens).
        reduce: called twice: with the sum and the count, then with the squared deviations, since
            E[x^2] - E[x]^2 cancels where the mean is large.
        shift_mean: False puts the mean back.

    Returns:
        (answers, tokens), without unit; 0 at padding.
    """
    count, mean, squares = _moments(x.unsqueeze(0), mask, reduce)
    variance = squares / (count - 1).clamp(min=1)
    white = (x - mean) * torch.rsqrt(variance + _EPSILON)
    return torch.where(mask > 0, white if shift_mean else white + mean, 0.0).to(x.dtype)


def policy_loss(
    log_probs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    low: float,
    high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's loss, -min(ratio A, clip(ratio, 1 - low, 1 + high) A) (Schulman et al. 2017, arXiv 1707.06347, eq. 7, where
    low and high are one epsilon).

    Args:
        log_probs, old: (answers, tokens), of the policy now and of the one that sampled.
        advantages: (answers, tokens).
        low, high: how far below and above 1 the ratio of the two probabilities may go.

    Returns:
        The loss per token, and whether the clip is what counts there, so that the token has no gradient; (answers,
        tokens) each, 0 and False at padding.
    """
    real = mask > 0
    # before exp, so that padding neither overflows nor sends nan into the gradient
    ratio = torch.where(real, log_probs - old, 0.0).exp()
    advantages = torch.where(real, advantages, 0.0)
    free, held = -advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(free, held), held > free


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float | None
) -> torch.Tensor:
    """Half the squared error of the critic; with a clip, the larger of it and that of the value kept within `clip` of
    the old one. The paper of PPO does not have it; it is that of Ziegler's program (openai/lm-human-preferences,
    `PPOTrainer.loss` in `train_policy.py`).

    Args:
        values, old_values, returns: (answers, tokens), in units of the score.
        clip: in units of the score; None for none.

    Returns:
        (answers, tokens), per token; padding is left to the caller.
    """
    error = (values - returns).square()
    if clip is not None:
        held = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (held - returns).square())
    return error / 2


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, reduce: Reduce) -> float | None:
    """1 - Var(returns - values) / Var(returns) over the real tokens of all processes: 1 for a perfect critic, 0 for one
    that says the same everywhere, negative for one that does harm.

    Args:
        values, returns: (answers, tokens).

    Returns:
        None where the returns do not vary by more than rounding.
    """
    count, means, squares = _moments(torch.stack([returns, returns - values]), mask, reduce)
    if bool(squares[0] <= count * (_ROUNDING * means[0]).square()):
        return None
    return 1 - float(squares[1] / squares[0])


def spread(x: torch.Tensor, mask: torch.Tensor, reduce: Reduce) -> float:
    """The standard deviation over the real tokens of all processes, in the unit of x."""
    count, _, squares = _moments(x.unsqueeze(0), mask, reduce)
    return float((squares[0] / count.clamp(min=1)).sqrt())


def _moments(x: torch.Tensor, mask: torch.Tensor, reduce: Reduce) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count (), means and sums of squared deviations (k) of k quantities (k, answers, tokens) over all real tokens.

    In float64, as a large constant's mean in float32 is off by as much as some quantities vary.
    """
    real = mask > 0
    x = torch.where(real, x.double(), 0.0).flatten(1)
    sums = reduce(torch.cat([x.sum(1), real.sum().double().unsqueeze(0)]))
    count, means = sums[-1], sums[:-1] / sums[-1].clamp(min=1)
    deviations = torch.where(real.flatten(), x - means.unsqueeze(1), 0.0)
    return count, means, reduce(deviations.square().sum(1))


@dataclass
class Controller:
    """The coefficient of the KL penalty, and what moves it towards a KL that is wanted.

    Attributes:
        coef: score per nat.
        target: the KL wanted, nats per answer.
        horizon: episodes (answers) over which a lasting error of 20 % or more moves the coefficient by about 20 %.
        adaptive: False leaves the coefficient as it is, whatever target and horizon are.
        last: the KL of the rollout before; None before the first.

    Raises:
        ValueError: adaptive, and target or horizon is not positive.
    """

    coef: float
    target: float
    horizon: float
    adaptive: bool
    last: float | None = None

    def __post_init__(self) -> None:
        if self.adaptive and not (self.target > 0 and self.horizon > 0):
            raise ValueError(f"target and horizon must be positive, not {self.target} and {self.horizon}")

    def update(self, kl: float, episodes: int) -> None:
        """coef *= 1 + clip(kl / target - 1, -0.2, 0.2) min(1, episodes / horizon), after a rollout.

        Ziegler et al. 2019 (arXiv 1909.08593, section 2.2) have a constant for the last factor, their program
        episodes / horizon. The cap is ours: beyond it a rollout would change the coefficient by more than 20 %.

        Ours too: the coefficient stays as it is while the KL comes nearer to its target by itself. A policy follows the
        coefficient only after some rollouts. From the KL of 0 that every run begins with, the published rule takes the
        coefficient down at each of them, and the KL then runs far past the target (docs/ppo.md has the figures).

        Args:
            kl: mean of the rollout, nats per answer.
            episodes: answers of the rollout, of all processes.

        Raises:
            ValueError: adaptive, and the KL is nan, which says nothing about where to go.
        """
        if not self.adaptive:
            return
        if math.isnan(kl):
            raise ValueError("the KL is not a number")
        last, self.last = self.last, kl
        if last is not None and self._nears(last, kl):
            return
        error = min(max(kl / self.target - 1, -_ERROR_LIMIT), _ERROR_LIMIT)
        self.coef *= 1 + error * self._share(episodes)

    def _nears(self, last: float, kl: float) -> bool:
        """Whether the KL came nearer to its target, and did not pass it."""
        before, now = last - self.target, kl - self.target
        return before * now > 0 and abs(now) < abs(before)

    def reach(self, episodes: int, rollouts: int) -> tuple[float, float]:
        """The lowest and the highest factor by which the coefficient can still change.

        Args:
            episodes: answers left in all.
            rollouts: updates left, each of episodes / rollouts answers.
        """
        if not self.adaptive or rollouts < 1:
            return 1.0, 1.0
        change = _ERROR_LIMIT * self._share(episodes / rollouts)
        return (1 - change) ** rollouts, (1 + change) ** rollouts

    def _share(self, episodes: float) -> float:
        return min(1.0, episodes / self.horizon)

    def state(self) -> dict[str, float]:
        """What changes in training, for a checkpoint."""
        return {"coef": self.coef} | ({} if self.last is None else {"last": self.last})

    def load(self, state: dict[str, float]) -> None:
        """Go on from what `state` gave."""
        self.coef, self.last = state["coef"], state.get("last")


def auto_horizon(episodes_per_rollout: int, rollouts: int) -> float:
    """The horizon, in episodes, with which the coefficient can change tenfold within a third of the run.

    A first coefficient is a guess that may well be wrong by ten; it should be right for the greater part of the run,
    and no livelier than that needs. Over k = rollouts // 3 updates of n episodes, the KL being always 20 % or more
    above the target, the coefficient grows by (1 + 0.2 n / horizon)^k. That is 10 at horizon = 0.2 n / (10^(1/k) - 1);
    down it goes faster still. With k < 13 no horizon does it, as the controller's step is capped: it is n then, which
    gives the capped step, and `Controller.reach` says how far that leads.
    """
    updates = max(1, rollouts // 3)
    return max(float(episodes_per_rollout), _ERROR_LIMIT * episodes_per_rollout / math.expm1(math.log(10) / updates))
