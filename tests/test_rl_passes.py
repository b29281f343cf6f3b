"""Forwards that share one base: which adapters act, positions of padded rows, recomputation where it belongs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel
from trl.trainer.utils import add_fused_lm_head

from align.policy.switchboard import Switchboard, checkpointing
from align.rl import critic as critics
from align.rl.critic import Critic, Passes
from align.rl.prompt_order import PromptOrder
from align.rl.ptx import Stream, padded, rows_of_update
from models import tiny_llama

IDS = torch.randint(5, 800, (3, 12), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)


def with_adapters() -> Any:
    """A tiny Llama with the adapters `default` and `align_value`, neither of them without effect."""
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules="all-linear"))
    model.add_adapter("align_value", LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
            parameter.requires_grad_(True)
    return model


def log_probs(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of every token but the first, as TRL's trainers ask for them."""
    labels = ids.masked_fill(mask == 0, -100)
    found: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs
    return found


def test_only_the_weights_of_an_adapter_are_set_to_train() -> None:
    model = get_peft_model(tiny_llama(), AdaLoraConfig(target_modules=["q_proj"], total_step=10))
    model.requires_grad_(False)
    Switchboard(model, ["default"]).train("default")
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B", "lora_E"}  # not its ranks


def test_switching_adapters_leaves_what_trains_as_it_is() -> None:
    model = with_adapters()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    board = Switchboard(model, ["default"])
    outputs = {}
    for names in (["default"], ["align_value"], ["default", "align_value"], []):
        with board.acting(names):
            outputs[tuple(names)] = model(input_ids=IDS).logits
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert board.now == ("default",)
    with model.disable_adapter():
        torch.testing.assert_close(outputs[()], model(input_ids=IDS).logits, rtol=0, atol=0)
    model.set_adapter("align_value")
    torch.testing.assert_close(outputs[("align_value",)], model(input_ids=IDS).logits, rtol=0, atol=0)
    apart = [a for i, a in enumerate(outputs.values()) for b in list(outputs.values())[i + 1 :] if torch.equal(a, b)]
    assert not apart


@pytest.mark.parametrize("remembers", [True, False])
def test_a_recomputation_runs_under_the_adapters_of_its_forward(remembers: bool) -> None:
    """Without our context it does not, and the gradients are wrong: the test can tell."""

    def gradients(checkpointed: bool) -> dict[str, torch.Tensor]:
        model = with_adapters()
        board = Switchboard(model, ["default"])
        lm = model.get_base_model()
        model.enable_input_require_grads()
        with ExitStack() as stack:
            if remembers:
                stack.enter_context(checkpointing(lm, board))
            if checkpointed:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
            policy = model(input_ids=IDS, use_cache=False).logits.float().logsumexp(-1).sum()
            with board.acting(["align_value"]):
                value = lm.base_model(input_ids=IDS, use_cache=False).last_hidden_state.float().square().sum()
            (policy + value).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys() and any(".align_value." in name for name in plain)
    errors = {name: ((again[name] - g).norm() / g.norm()).item() for name, g in plain.items() if g.norm() > 0}
    if remembers:
        assert max(errors.values()) < 1e-5
    else:
        assert max(errors.values()) > 0.1


def test_rows_padded_on_the_left_get_the_positions_that_generation_gave_them() -> None:
    """GPT-2 has absolute positions; TRL's own pass is off by as much as shown."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=800, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()
    torch.nn.init.normal_(model.transformer.wpe.weight, std=0.5)
    add_fused_lm_head(model)
    padded = torch.cat([torch.zeros(3, 5, dtype=torch.long), IDS], 1)
    mask = torch.cat([torch.zeros(3, 5, dtype=torch.long), MASK], 1)
    expected = log_probs(model, IDS, MASK)
    off = (log_probs(model, padded, mask)[:, 5:] - expected).abs().max()
    with critics.amended(model):
        assert (log_probs(model, padded, mask)[:, 5:] - expected).abs().max() < 1e-5
    assert off > 0.1
    torch.testing.assert_close(log_probs(model, IDS, MASK), expected)  # and everything is as it was


def test_the_last_token_is_not_run() -> None:
    model, seen = tiny_llama(), []
    add_fused_lm_head(model)
    expected = log_probs(model, IDS, MASK)
    model.model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"]), with_kwargs=True)
    with critics.amended(model):
        found = log_probs(model, IDS, MASK)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert seen[0].tolist() == IDS[:, :-1].tolist()


@pytest.mark.parametrize("kind", ["head", "adapter", "model"])
def test_values_come_with_the_log_probabilities(kind: str) -> None:
    model = with_adapters()
    lm, board = model.get_base_model(), Switchboard(model, ["default"])
    add_fused_lm_head(lm)
    head = critics.new_head(lm)
    torch.nn.init.normal_(head.weight)
    backbone = tiny_llama(5).model if kind == "model" else None
    critic = Critic(head, backbone, ["align_value"] if kind == "adapter" else None)
    alone = log_probs(model, IDS, MASK)
    with critics.attached(lm, critic, board) as passes, passes.collect() as values:
        torch.testing.assert_close(log_probs(model, IDS, MASK), alone, rtol=0, atol=0)
    trunk = backbone or lm.base_model
    with board.acting(["align_value"] if kind == "adapter" else None):
        hidden = trunk(input_ids=IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(values[0], head(hidden).squeeze(-1))
    assert not hasattr(lm, "align_critic")


def test_a_detached_value_moves_no_trunk_that_it_shares() -> None:
    model = tiny_llama()
    add_fused_lm_head(model)
    critic = Critic(critics.new_head(model))
    torch.nn.init.normal_(critic.head.weight)
    with critics.attached(model, critic, None) as passes, passes.collect(detached=True) as values:
        log_probs(model, IDS, MASK)
        values[0].sum().backward()
    assert critic.head.weight.grad is not None
    assert all(p.grad is None for name, p in model.named_parameters() if "critic" not in name)


def test_critics_weights_go_out_and_come_back(tmp_path: Any) -> None:
    one, other = with_adapters(), with_adapters()
    for model, seed in ((one, 3), (other, 4)):
        torch.manual_seed(seed)
        model.get_base_model().align_critic = Critic(critics.new_head(model.get_base_model()), names=["align_value"])
        for name, parameter in model.named_parameters():
            if critics.is_critic(name):
                parameter.data.normal_()
    critics.save(one, tmp_path)
    critics.load(other, tmp_path)
    found, expected = dict(other.named_parameters()), dict(one.named_parameters())
    assert all(torch.equal(found[name], p) for name, p in expected.items() if critics.is_critic(name))
    assert any(".align_value." in name for name in expected)
    del other.get_base_model().align_critic
    with pytest.raises(ValueError, match="other weights"):
        critics.load(other, tmp_path)


def test_the_order_of_prompts_is_that_of_trl_and_its_own_in_every_epoch() -> None:
    order = PromptOrder(7, prompts=3, samples=2, steps=2, seed=3)
    first = list(order)
    assert len(first) == len(order) == 3 * 3 * 2 * 2
    blocks = [first[i : i + 12] for i in range(0, 36, 12)]
    for block in blocks:
        assert block[:6] == block[6:]  # the rollout once for each step made from it
        assert block[0:6:2] == block[1:6:2] and len(set(block)) == 3  # each prompt's answers side by side
    assert set(first) == set(range(7))
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    assert list(order) == first
    few = PromptOrder(2, prompts=5, samples=1, steps=1, seed=None)
    assert list(few) == [0, 1, 0, 1, 0]


def test_replayed_rows_come_by_their_number() -> None:
    stream = Stream([([1, 2, 3], [-100, 2, 3]), ([4], [-100]), ([5, 6], [-100, 6])], size=2)
    ids, labels = zip(*stream.rows(1), strict=True)
    batch = padded(ids, labels, 0, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 0], [1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 6, -100], [-100, 2, 3]]
    assert rows_of_update(0.2, 16) == 4 and rows_of_update(0.01, 4) == 1


def test_a_shared_reward_model_scores_as_one_of_its_own() -> None:
    """At the last token that is no padding, whatever row it stands beside."""
    from align.rl import scoring
    from align.rl.scoring import Question, SharedModel, last_tokens
    from models import lab_tokenizer

    model = with_adapters()
    lm, board = model.get_base_model(), Switchboard(model, ["default"])
    head = critics.new_head(lm)
    torch.nn.init.normal_(head.weight)
    closed = scoring.closed(lab_tokenizer(), [])
    passes = Passes(lm, Critic(head), board)
    scorer = SharedModel("reward", passes, ["align_value"], head, pad=0, size=2, closed=closed)
    rows = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    found = scorer(Question(["a"] * 3, ["b"] * 3, [row[:1] for row in rows], [row[1:] for row in rows]))
    for row, value in zip(rows, found, strict=True):
        with board.acting(["align_value"]):
            alone = head(lm.base_model(input_ids=torch.tensor([row])).last_hidden_state)[0, -1]
        assert value == pytest.approx(alone.item(), abs=1e-5)
    assert last_tokens(torch.tensor([[3, 4, 0, 0], [0, 0, 5, 6]]), 0).tolist() == [1, 3]
