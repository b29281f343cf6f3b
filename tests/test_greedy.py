"""Greedy answers of many prompts at once are those that `generate` gives to each alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from align.forgetting import greedy
from models import tiny_llama
from test_likelihoods import adapted, gpt2, windowed

BEGUN = [17, 400, 23]
TOKENS = 12


def prompts() -> list[list[int]]:
    made = torch.Generator().manual_seed(5)
    return [torch.randint(5, 799, (length,), generator=made).tolist() for length in (1, 9, 4, 4, 17, 2, 30, 6)]


def alone(model: Any, row: list[int], stop: list[int]) -> list[int]:
    ids = torch.tensor([row])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=stop or None,
        pad_token_id=0,
    )[0, len(row) :].tolist()
    return made[:-1] if made[-1] in stop else made


@pytest.mark.parametrize("make", [tiny_llama, gpt2, adapted, windowed])
@pytest.mark.parametrize("begun", [[], BEGUN], ids=["apart", "begun"])
@pytest.mark.parametrize("worth", [0.0, 0.7, 1.0])
def test_answers_are_those_that_generate_gives_to_each_prompt_alone(
    make: Callable[[], Any], begun: list[int], worth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if make is windowed and begun:
        pytest.skip("is asked without a shared beginning")
    monkeypatch.setattr(greedy, "WORTH", worth)
    torch.manual_seed(0)
    model, rows = make().eval(), prompts()
    model.generation_config.eos_token_id = None
    endless = [alone(model, begun + row, []) for row in rows]
    stop = [answer[at] for answer, at in zip(endless[:5], (0, 3, 5, 8, 11), strict=True)]
    expected = [alone(model, begun + row, stop) for row in rows]
    assert len(set(map(len, expected))) > 2 and [] in expected
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        assert greedy.answers(model, begun, ids, mask, TOKENS, stop) == expected
