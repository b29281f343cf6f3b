"""Supervised fine-tuning on TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from trl import SFTTrainer

from align.trainers.held_out import HeldOut
from align.trainers.near import NearIncoming


class SftTrainer(HeldOut, NearIncoming, SFTTrainer):
    """SFTTrainer over rows that are token ids already."""

    units: ClassVar = {"entropy": "tokens", "mean_token_accuracy": "tokens"}
    loss_unit = "tokens"

    def counts(self, inputs: Mapping[str, torch.Tensor], outputs: Any) -> dict[str, torch.Tensor]:
        """The tokens that the loss is about."""
        return {"tokens": outputs.label_mask.sum()}
