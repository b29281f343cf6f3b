"""GRPO on TRL's GRPOTrainer (Shao et al. 2024, arXiv 2402.03300), against the policy that came in."""

from __future__ import annotations

from trl import GRPOTrainer

from align.trainers.critic_free import TrlLoss


class GrpoTrainer(TrlLoss, GRPOTrainer):
    """GRPOTrainer with our prompts, reference, scores and record."""
