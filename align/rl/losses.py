"""PPO's clipped losses of policy and critic.

Tensors are float32 of (answers, tokens), answers padded on the right; `mask` is 1 at real tokens and 0 at padding.
"""

from __future__ import annotations

import torch


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
