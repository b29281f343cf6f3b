"""Reward models on TRL's RewardTrainer, and how well one tells better answers from worse ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset
from trl import RewardTrainer as TrlRewardTrainer

from align.data.order import LENGTH
from align.forgetting.statistics import wilson
from align.trainers.base import BaseTrainer, autocast
from align.trainers.held_out import HeldOut
from align.trainers.means import GREATEST, LEAST

BINS = 10
CHANCE = 0.5  # of ranking the better answer first


class RewardTrainer(HeldOut, BaseTrainer, TrlRewardTrainer):
    """RewardTrainer over token ids."""

    units: ClassVar = {"min_reward": LEAST, "max_reward": GREATEST} | dict.fromkeys(
        ("mean_reward", "accuracy", "margin"), "pairs"
    )
    loss_unit = "pairs"

    def counts(self, inputs: Mapping[str, torch.Tensor], outputs: Any) -> dict[str, torch.Tensor]:
        """The pairs of a batch."""
        return {"pairs": torch.tensor(outputs.logits.size(0) // 2)}

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    @torch.no_grad()
    def scores(self, rows: Dataset) -> tuple[list[float], list[float]]:
        """The scores of the chosen and of the rejected answers, in the order of the rows."""
        model, size = self.model.eval(), 2 * self.args.per_device_train_batch_size
        found = torch.zeros(2, len(rows))
        by_length = sorted(range(len(rows)), key=rows[LENGTH].__getitem__)
        for start in range(0, len(rows), size):
            batch = by_length[start : start + size]
            collated = self.data_collator([rows[i] for i in batch])
            inputs = {name: t.to(self.accelerator.device) for name, t in collated.items() if name != "margin"}
            with autocast(self):
                logits = model(**inputs, use_cache=False).logits
            found[:, batch] = logits.squeeze(-1).float().cpu().reshape(2, -1)
        return found[0].tolist(), found[1].tolist()


def figures(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, Any]:
    """How well scores tell better answers from worse ones.

    Returns:
        `pair_accuracy`: share of pairs whose better answer has the higher score, ties counting half; with its 95 %
            interval by Wilson, `pair_accuracy_ci95`.
        `pair_margin`: mean difference of the two scores.
        `pair_loss`: mean of -log sigmoid(difference), nats (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1).
        `score_mean`, `score_std`: over all answers.
        `calibration_error`: expected gap between how sure the model is of its choice, sigmoid(|difference|), and how
            often it is right, in ten bins (Guo et al. 2017, eq. 3); `calibration` holds the bins that have pairs.
        `score_histogram`: counts of the scores of both sides between `edges`.
    """
    gaps = [a - b for a, b in zip(chosen, rejected, strict=True)]
    everything = torch.tensor([*chosen, *rejected], dtype=torch.float64)
    bins = _calibration(gaps)
    accuracy = sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)
    return {
        "pair_accuracy": accuracy,
        "pair_accuracy_ci95": list(wilson(accuracy, len(gaps))),
        "pair_margin": sum(gaps) / len(gaps),
        "pair_loss": sum(math.log1p(math.exp(-abs(gap))) + max(-gap, 0.0) for gap in gaps) / len(gaps),
        "score_mean": everything.mean().item(),
        "score_std": everything.std(correction=0).item(),
        "calibration_error": sum(b["count"] * abs(b["predicted"] - b["observed"]) for b in bins) / len(gaps),
        "calibration": bins,
        "score_histogram": _histogram(chosen, rejected),
    }


def doubt(accuracy: float, pairs: int) -> str | None:
    """What is to be said of a model that held-out pairs do not show to be better than chance; None of a better one."""
    low, high = wilson(accuracy, pairs)
    if low > CHANCE:
        return None
    if high < CHANCE:
        how, remedy = "ranks held-out pairs worse than chance", "check whether chosen and rejected are swapped"
    else:
        how = "may be no better than chance"
        remedy = "hold out more pairs (`eval_data`), or train on more and clearer pairs"
    seen = f"correct on {accuracy * pairs:g} of {pairs:,} held-out pairs"
    interval = f"95 % interval {low:.3f} to {high:.3f}, chance is {CHANCE:g}"
    return f"the reward model {how}: {seen} ({accuracy:.3f}, {interval}); {remedy} before you train on its scores"


def _calibration(gaps: Sequence[float]) -> list[dict[str, float]]:
    """Pairs by how sure the model is of its choice, from 0.5 to 1: the mean of that, and how often it is right."""
    sure = [1 / (1 + math.exp(-min(abs(gap), 700.0))) for gap in gaps]
    bins: dict[int, list[int]] = {}
    for i, share in enumerate(sure):
        bins.setdefault(min(int((share - 0.5) * 2 * BINS), BINS - 1), []).append(i)
    return [
        {
            "predicted": sum(sure[i] for i in members) / len(members),
            "observed": sum(1.0 if gaps[i] > 0 else 0.5 if gaps[i] == 0 else 0.0 for i in members) / len(members),
            "count": len(members),
        }
        for _, members in sorted(bins.items())
    ]


def _histogram(chosen: Sequence[float], rejected: Sequence[float], bins: int = 20) -> dict[str, list[float]]:
    low, high = min(*chosen, *rejected), max(*chosen, *rejected)
    edges = torch.linspace(low, high if high > low else low + 1, bins + 1, dtype=torch.float64)
    counts = [torch.histogram(torch.tensor(side, dtype=torch.float64), edges).hist for side in (chosen, rejected)]
    return {"edges": edges.tolist(), "chosen": counts[0].tolist(), "rejected": counts[1].tolist()}
