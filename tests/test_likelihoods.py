"""Answers scored over one shared pass of their question have the likelihoods that each has alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from align.forgetting import decoder
from align.forgetting.battery import likelihoods
from align.forgetting.battery.likelihoods import Asked, log_likelihoods
from align.forgetting.battery.tree import Tree
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


def eager() -> Any:
    model = tiny_llama()
    model.set_attn_implementation("eager")
    return model


def scored(model: Any, asked: list[tuple[list[list[int]], list[int]]]) -> list[list[float]]:
    """With the questions in groups of which one is empty."""
    with torch.inference_mode():
        one_by_one, alike = [Asked.of(*one) for one in asked[:4]], [Asked.of(*one) for one in asked[4:]]
        found = log_likelihoods(model, [one_by_one, [], alike], pad=0, autocast=False)
    return [*found[0], *found[2]]


def assert_as_alone(model: Any, asked: list[tuple[list[list[int]], list[int]]]) -> None:
    for scores, (whole, firsts) in zip(scored(model, asked), asked, strict=True):
        expected = [alone(model, row, first) for row, first in zip(whole, firsts, strict=True)]
        assert scores == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("make", [tiny_llama, eager, gpt2, adapted])
@pytest.mark.parametrize("nodes", [1, 50, 1000])
def test_each_answer_in_a_tree_has_the_likelihood_that_it_has_alone(
    make: Any, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(likelihoods.NODES, "cpu", nodes)
    model, asked = make().eval(), rows(12)
    assert decoder.masked(model, 50)
    assert_as_alone(model, asked)


@pytest.mark.parametrize("make", [tiny_llama, gpt2, adapted, prompted])
@pytest.mark.parametrize("most", [1, 5, 64])
def test_each_answer_after_its_cached_question_has_the_likelihood_that_it_has_alone(
    make: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihoods, "MOST", most)
    monkeypatch.setattr(decoder, "masked", lambda *_: False)
    model, asked = make().eval(), rows(12)
    assert_as_alone(model, asked)


def test_a_tree_holds_no_token_twice_and_no_row_that_is_taken_back() -> None:
    tree = Tree()
    tree.add([7, 8, 9, 1], 2)
    tree.add([7, 8, 9, 2, 3], 3)
    before = copy.deepcopy(tree)
    tree.add([7, 5, 6], 1)
    assert (tree.tokens, tree.parents, tree.depths) == ([7, 8, 9, 2, 5], [-1, 0, 1, 2, 0], [0, 1, 2, 3, 1])
    assert tree.told == {1: 0, 2: 1, 3: 2, 0: 3, 4: 4}
    assert tree.edges == [[(0, 9), (1, 1)], [(1, 2), (2, 3)], [(3, 5), (4, 6)]]
    assert tree.visible().int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 0, 0, 0, 1],
    ]
    tree.cut(4, 3, 2)
    assert tree == before


def test_the_trees_hold_every_question_once_in_as_many_nodes_as_they_may() -> None:
    asked = [Asked.of(*one) for one in rows(30)]
    found = likelihoods.planted([asked], vocabulary=800, nodes=60)
    assert sorted(place for batch in found for place in batch.places) == list(range(30))
    assert all(len(batch.tree) <= 60 or len(batch) == 1 for batch in found)
    assert [len(batch.tree.edges) for batch in found] == [
        sum(len(asked[place].rest) for place in batch.places) for batch in found
    ]
    (whole,) = likelihoods.planted([asked], vocabulary=800, nodes=10**6)
    rest = [one.shared + tokens for one in asked for tokens in one.rest]
    assert len(whole.tree) == len({tuple(row[:end]) for row in rest for end in range(1, len(row))})
    narrow = likelihoods.planted([asked], vocabulary=2**26, nodes=10**6)  # one position's logits fill the budget
    assert all(len(batch) == 1 for batch in narrow)


def windowed(window: int = 8) -> Any:
    config = MistralConfig(
        vocab_size=800,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=window,
    )
    return MistralForCausalLM(config)


def recurrent() -> Any:
    return MambaForCausalLM(MambaConfig(vocab_size=800, hidden_size=16, num_hidden_layers=1, state_size=4))


def test_no_tree_is_put_to_a_model_that_does_not_do_as_a_mask_says() -> None:
    assert decoder.masked(windowed(), 8) and not decoder.masked(windowed(), 9) and decoder.ordinary(windowed())
    assert not decoder.ordinary(recurrent()) and not decoder.masked(recurrent(), 8)
    assert not decoder.ordinary(prompted())


def test_a_model_with_a_window_is_scored_with_its_window() -> None:
    torch.manual_seed(3)
    for window in (8, 64):
        model = windowed(window).eval()
        assert decoder.masked(model, 43) is (window == 64)
        assert_as_alone(model, rows(12))


def test_what_is_shared_ends_before_the_first_answer() -> None:
    asked = Asked.of([[1, 2, 3, 9], [1, 2, 3, 9, 4]], [2, 2])
    assert (asked.shared, asked.rest, asked.first) == ([1, 2], [[3, 9], [3, 9, 4]], [0, 0])
    asked = Asked.of([[1, 2, 3, 9], [1, 7, 3, 8]], [3, 3])
    assert (asked.shared, asked.rest, asked.first) == ([1], [[2, 3, 9], [7, 3, 8]], [2, 2])


def test_no_questions_have_no_scores() -> None:
    assert log_likelihoods(tiny_llama().eval(), [], pad=0, autocast=False) == []
