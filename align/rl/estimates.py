"""The figures that PPO learns from: KL to the reference, shaped rewards, advantages.

Tensors are float32 of (answers, tokens), answers padded on the right. `mask` is 1 at real tokens and 0 at padding; an
answer may have no real token. What stands in padding, inf and nan included, changes nothing at a real token.
Log-probabilities and KL are in nats. A `reduce` sums a tensor over all processes, each of which must make the call;
with one it is the identity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Reduce = Callable[[torch.Tensor], torch.Tensor]

_EPSILON = 1e-8  # added to a variance, so that what does not vary is not blown up
_ROUNDING = 1e-6  # a deviation of this share of the mean is what float32 leaves of a constant


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
