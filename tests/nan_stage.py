"""Supervised fine-tuning with a loss that is no number in the steps that NAN_AT names. A stage of the tests."""

import os
from dataclasses import replace
from pathlib import Path

from align.stage import program

SFT = program.load("sft", Path())


def train(job):
    from align.trainers.sft import SftTrainer

    steps = [int(step) for step in os.environ.get("NAN_AT", "").split(",") if step]
    whole = SftTrainer.compute_loss

    def compute_loss(self, *arguments, **named):
        found = whole(self, *arguments, **named)
        if self.model.training and self.state.global_step + 1 in steps:
            return (found[0] * float("nan"), *found[1:]) if isinstance(found, tuple) else found * float("nan")
        return found

    SftTrainer.compute_loss = compute_loss
    try:
        return SFT.stage.train(job)
    finally:
        SftTrainer.compute_loss = whole


STAGE = replace(SFT.stage, train=train)
