"""Minibatches of answers of like length: the same answers, the same figures, less padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from align.trainers.minibatches import Minibatches, bounds, by_length, cut, regrouped, trimmed
from models import BASE, FULL, Stages
from test_ppo import function, ppo, run, stages

__all__ = ["stages"]  # a fixture

PROMPTS = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
ANSWERS = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])


def rollout() -> dict[str, Any]:
    one = {
        "prompt_ids": torch.arange(16).view(4, 4) * PROMPTS,
        "prompt_mask": PROMPTS,
        "completion_ids": torch.arange(20).view(4, 5) * ANSWERS,
        "completion_mask": ANSWERS,
        "advantages": torch.arange(20.0).view(4, 5),
        "scores": torch.arange(4.0),
        "tokens": torch.tensor(10),
        "nothing": None,
    }
    return one | {"minibatch": by_length(PROMPTS, ANSWERS, 2).argsort() // 2}


def test_the_order_is_the_one_that_wastes_least() -> None:
    assert by_length(PROMPTS, ANSWERS, 2).tolist() == [0, 2, 3, 1]  # by the answers: 5 + 5 columns; by both it is 7 + 5
    even = torch.ones(4, 5)
    assert by_length(PROMPTS, even, 2).tolist() == [1, 3, 2, 0]  # then the prompts decide


def test_only_padding_is_cut_away() -> None:
    assert bounds(PROMPTS, ANSWERS) == (1, 4)
    assert bounds(torch.zeros(2, 3), torch.zeros(2, 4)) == (0, 1)  # nothing real at all: one column stays
    ids, mask, kept = cut(torch.arange(18).view(2, 9), torch.cat([PROMPTS, ANSWERS], 1)[:2], 5)
    assert (ids.tolist(), kept) == ([[1, 2, 3, 4, 5, 6, 7], [10, 11, 12, 13, 14, 15, 16]], 4)
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]]


def test_every_answer_goes_into_its_minibatch_whole() -> None:
    whole = rollout()
    halves = [{k: v[i : i + 2] if torch.is_tensor(v) and v.ndim else v for k, v in whole.items()} for i in (0, 2)]
    one, two = (trimmed(batch) for batch in regrouped(halves, [1, 0]))
    assert one["scores"].tolist() == [1, 3] and two["scores"].tolist() == [0, 2]
    assert one["prompt_ids"].tolist() == [[7], [15]] and one["completion_ids"].shape == one["advantages"].shape == (
        2,
        4,
    )
    assert two["prompt_ids"].shape == (2, 3) and two["completion_ids"].tolist() == [[0, 0], [10, 11]]
    assert one["tokens"] == two["tokens"] == 10 and one["nothing"] is None


@pytest.mark.parametrize("kind", ["head", "model"])
def test_a_stage_learns_from_every_answer_in_fewer_columns(
    kind: str, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    widths: list[int] = []
    prepare = Minibatches._prepare_inputs

    def watched(self: Any, batch: Any) -> Any:
        seen.append(prepare(self, batch))
        widths.append(self._buffered_inputs[0]["completion_mask"].size(1))
        return seen[-1]

    monkeypatch.setattr(Minibatches, "_prepare_inputs", watched)
    training = {"learning_rate": 0.0, "max_completion_length": 16}  # the lab's answers end after 3 to 14 tokens
    run(stages, ppo(stages, BASE, FULL, function("short"), critic=kind, training=training))
    for start in range(0, len(seen), 4):  # two passes of two minibatches over each rollout
        passes = [torch.cat([batch["values"].sum(1) for batch in seen[i : i + 2]]) for i in (start, start + 2)]
        torch.testing.assert_close(*(one.sort().values for one in passes), rtol=0, atol=0)
    for batch in seen:
        assert batch["prompt_mask"].any(0).all() and batch["completion_mask"].any(0).all()
    assert any(batch["completion_mask"].size(1) < width for batch, width in zip(seen, widths, strict=True))
