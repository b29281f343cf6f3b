"""Supervised fine-tuning on TRL's SFTTrainer."""

from __future__ import annotations

from trl import SFTTrainer

from align.trainers.rows import OurRows


class SftTrainer(OurRows, SFTTrainer):
    """SFTTrainer over rows that are token ids already."""
