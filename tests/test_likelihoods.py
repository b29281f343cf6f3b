"""Answers scored over one shared pass of their question have the likelihoods that each has alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from align.forgetting.battery import likelihoods
from align.forgetting.battery.likelihoods import Asked, log_likelihoods
from models import tiny_llama


def gpt2() -> Any:
    """Positions are learnt: a padded row must not be moved."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=800, n_embd=16, n_layer=2, n_head=2, n_positions=128))


def adapted() -> Any:
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def prompted() -> Any:
    return get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))


def rows(count: int) -> list[tuple[list[list[int]], list[int]]]:
    """Questions of 1 to 30 tokens with two to four answers of 1 to 6; some are tokenised together with its last. All
    but the first third begin alike."""
    made = torch.Generator().manual_seed(1)

    def drawn(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=made))

    found = []
    beginning = [drawn(5, 799) for _ in range(7)]
    for number in range(count):
        question = [drawn(5, 799) for _ in range(drawn(1, 30))]
        if number >= count // 3:
            question = beginning + question
        answers = [[drawn(5, 799) for _ in range(drawn(1, 6))] for _ in range(drawn(2, 4))]
        whole = [question + answer for answer in answers]
        if number % 3 == 0 and len(question) > 1:
            whole[0][len(question) - 1] = 4
        found.append((whole, [len(question)] * len(answers)))
    return found


def alone(model: Any, row: list[int], first: int) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0, -len(row) :]  # a learnt prompt stands before it
    log_probs = torch.log_softmax(logits.float(), -1)
    return sum(float(log_probs[at - 1, row[at]]) for at in range(first, len(row)))


@pytest.mark.parametrize("make", [tiny_llama, gpt2, adapted, prompted])
@pytest.mark.parametrize("most", [1, 5, 64])
def test_each_answer_has_the_likelihood_that_it_has_alone(
    make: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihoods, "MOST", most)
    model, asked = make().eval(), rows(12)
    with torch.inference_mode():
        one_by_one, alike = [Asked.of(*one) for one in asked[:4]], [Asked.of(*one) for one in asked[4:]]
        found = log_likelihoods(model, [one_by_one, [], alike], pad=0, autocast=False)
    for scores, (whole, firsts) in zip([*found[0], *found[2]], asked, strict=True):
        expected = [alone(model, row, first) for row, first in zip(whole, firsts, strict=True)]
        assert scores == pytest.approx(expected, abs=2e-4)


def test_what_is_shared_ends_before_the_first_answer() -> None:
    asked = Asked.of([[1, 2, 3, 9], [1, 2, 3, 9, 4]], [2, 2])
    assert (asked.shared, asked.rest, asked.first) == ([1, 2], [[3, 9], [3, 9, 4]], [0, 0])
    asked = Asked.of([[1, 2, 3, 9], [1, 7, 3, 8]], [3, 3])
    assert (asked.shared, asked.rest, asked.first) == ([1], [[2, 3, 9], [7, 3, 8]], [2, 2])


def test_no_questions_have_no_scores() -> None:
    assert log_likelihoods(tiny_llama().eval(), [], pad=0, autocast=False) == []
