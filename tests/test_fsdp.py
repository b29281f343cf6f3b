"""The parts of FSDP2's engine, on a mesh of one process: what it shares out is put together again, and nothing stays.

test_sharing_engines.py runs whole chains in two processes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from align.engines import fsdp, world
from align.errors import AlignError
from align.policy import partitioned
from align.policy.score_head import Score
from align.run_folder.launch import Launch
from align.trainers import fsdp as states
from align.trainers.held_out import HeldOut

IDS = torch.tensor([[1, 5, 9, 2, 7]])


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """A process group of this process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def small(*, tied: bool = True) -> Any:
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=31, tie_word_embeddings=tied, **shape))


def trainer(model: Any, *, bf16: bool = False) -> Any:
    return Trained(model, SimpleNamespace(bf16=bf16))


class Trained:
    """A trainer as far as an engine looks at it."""

    def __init__(self, model: Any, args: Any) -> None:
        self.model, self.args, self.optimizer = model, args, torch.optim.AdamW(model.parameters())
        plugin = SimpleNamespace(mixed_precision_policy=None)
        self.accelerator = SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=plugin),
            device=torch.device("cpu"),
            distributed_type=SimpleNamespace(value="FSDP"),
            is_fsdp2=True,
            num_processes=1,
            unwrap_model=Accelerator.unwrap_model.__get__(object()),
        )


def share(model: Any) -> None:
    """As accelerate does it: each layer, then the embeddings with the head, then the rest."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in inner.model.layers:
        fully_shard(layer)
    fully_shard([inner.model.norm, inner.model.embed_tokens, inner.lm_head], reshard_after_forward=False)
    fully_shard(model)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_is_itself_again_after_training(bf16: bool) -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    if bf16:  # `unwrap_model` leaves the model's own method bound to it
        names[""].add("forward")
    expected = model(input_ids=IDS).logits
    one = trainer(model, bf16=bf16)
    fsdp.prepare(one)
    share(model)
    distributed.fsdp.register_fsdp_forward_method(model, "generate")
    with torch.no_grad():
        model(input_ids=IDS)  # leaves the head whole
    assert isinstance(model, FSDPModule)
    fsdp.whole(one)
    assert not any(isinstance(module, FSDPModule) for module in model.modules())
    assert type(model) is LlamaForCausalLM
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names, "no mark, and no shard is held"
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is DTensor], "no shard is left"
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(model(input_ids=IDS).logits, expected)


def test_a_state_is_put_together_and_shared_out_to_the_same_bits() -> None:
    model = small()
    share(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    found = states.gathered(optimizer, keep=True)
    assert found is not None
    assert states.gathered(optimizer, keep=False) is None, "the others only take part"
    moments = [value for own in found["state"].values() for value in own.values()]
    assert not any(isinstance(value, DTensor) for value in moments)
    other = torch.optim.AdamW(model.parameters(), lr=1.0)
    states.scatter(other, found)
    assert other.param_groups[0]["lr"] == 0.01
    for weight in model.parameters():
        assert isinstance(other.state[weight]["exp_avg"], DTensor)
        assert torch.equal(
            other.state[weight]["exp_avg"].full_tensor(), optimizer.state[weight]["exp_avg"].full_tensor()
        )
    with pytest.raises(ValueError, match="the checkpoint's optimizer has other weights than the model trains"):
        states.scatter(torch.optim.AdamW(list(model.parameters())[:2]), found)


def test_what_is_saved_of_an_adapter_does_not_hold_the_base() -> None:
    model = get_peft_model(small(), LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="trained")
    expected = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    share(model)
    found = partitioned.to_save(model, keep=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert partitioned.to_save(model, keep=False) == {}
    assert partitioned.to_save(small(tied=False), keep=True).keys() == small(tied=False).state_dict().keys()


def test_a_launch_that_shares_nothing_is_refused() -> None:
    one = trainer(small())
    with pytest.raises(AlignError, match=r"model\.embed_tokens\.weight is not shared out among 1 processes"):
        fsdp.prove(one, Launch(engine="fsdp", processes=1))
    with pytest.raises(AlignError, match="2 processes were requested, but 1 started"):
        fsdp.prove(one, Launch(engine="fsdp", processes=2))
    one.accelerator.num_processes = 2
    with pytest.raises(AlignError, match=r"model\.embed_tokens\.weight is not shared out among 2 processes"):
        fsdp.prove(one, Launch(engine="fsdp", processes=2))
    one.accelerator.distributed_type.value = "MULTI_CPU"
    with pytest.raises(AlignError, match="FSDP2 was requested, but the trainer is of the type MULTI_CPU"):
        fsdp.prove(one, Launch(engine="fsdp", processes=2))


def test_a_weight_that_stays_whole_is_told() -> None:
    one = trainer(small())
    share(one.model)
    one.model.extra = torch.nn.Parameter(torch.ones(2), requires_grad=False)  # as 4-bit weights are left out
    with pytest.raises(AlignError, match="extra is not shared out among 1 processes"):
        fsdp.prove(one, Launch(engine="fsdp", processes=1))


def test_what_is_shared_out_as_one_are_the_layers_that_a_model_has() -> None:
    one = trainer(small(), bf16=True)
    one.model._no_split_modules = ["LlamaDecoderLayer", "OfAnotherTower"]
    fsdp.prepare(one)
    plugin = one.accelerator.state.fsdp_plugin
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    one.model.score = Score(4, 1)
    fsdp.prepare(one)
    assert plugin.mixed_precision_policy.param_dtype is None, "a reward model's head computes in float32"
    one.model._no_split_modules = ["OfAnotherTower"]
    with pytest.raises(AlignError, match="does not say what its layers are"):
        fsdp.prepare(one)


def test_a_launch_that_accelerate_was_not_told_of_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    with pytest.raises(AlignError, match="the launch does not ask accelerate for it"):
        fsdp.begin(Launch(engine="fsdp", processes=2))


def test_a_model_that_casts_is_called_by_keyword_once_it_is_unwrapped() -> None:
    model = small()
    one = trainer(model)
    world.cast(one)
    assert model(input_ids=IDS).logits.dtype == torch.float32
    one.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    assert torch.equal(model(input_ids=IDS).logits, small()(input_ids=IDS).logits)


@pytest.mark.parametrize(("rows", "expected"), [(5, [[0, 1], [4]]), (2, [[0, 1]]), (8, [[0, 1], [4, 5]])])
def test_each_process_makes_as_many_passes_through_shared_weights(rows: int, expected: list[list[int]]) -> None:
    def batches(rank: int, model: Any) -> tuple[list[list[int]], int]:
        one = HeldOut.__new__(HeldOut)
        one.model, one.data_collator = model, None
        one.accelerator = SimpleNamespace(process_index=rank, num_processes=2)
        one.args = SimpleNamespace(per_device_eval_batch_size=2, dataloader_num_workers=0, dataloader_pin_memory=False)
        found = list(one.get_eval_dataloader(list(range(rows))).batch_sampler)
        return found, one.left

    model = small()
    assert batches(0, model)[0] == expected
    share(model)
    own = [batches(rank, model) for rank in range(2)]
    assert len(own[0][0]) == len(own[1][0]), "or the first would wait for ever"
    assert [left for _, left in own] == [len(batches(rank, small())[0]) for rank in range(2)]
