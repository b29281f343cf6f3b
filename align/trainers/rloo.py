"""RLOO on TRL's RLOOTrainer (Ahmadian et al. 2024, arXiv 2402.14740), against the policy that came in."""

from __future__ import annotations

from trl import RLOOTrainer

from align.trainers.critic_free import TrlLoss


class RlooTrainer(TrlLoss, RLOOTrainer):
    """RLOOTrainer with our prompts, reference, scores and record."""
