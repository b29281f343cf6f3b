"""What ZeRO-2 and ZeRO-3 share out is put together as torch's optimizer has it, and shared out again. No DeepSpeed.

Its optimizers are rebuilt here as far as they are touched: flat groups of weights, cut into a part for each process
(ZeRO-2), and weights that are each cut into parts (ZeRO-3). test_sharing_engines.py does the same with the real ones.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from align.trainers import zero, zero3
from align.trainers.zero_apart import Apart

SHAPES = [[(3, 5), (7,)], [(4,), (1,)]]  # of two groups of weights; parts end inside a weight


def trained() -> tuple[torch.optim.Optimizer, list[list[nn.Parameter]]]:
    """AdamW after a few steps, as one process has it."""
    torch.manual_seed(0)
    groups = [[nn.Parameter(torch.randn(shape)) for shape in shapes] for shapes in SHAPES]
    settings = [{"params": group, "weight_decay": decay} for group, decay in zip(groups, (0.1, 0.0), strict=True)]
    optimizer = torch.optim.AdamW(settings, lr=0.01)
    for _ in range(3):
        for parameter in [one for group in groups for one in group]:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer, groups


def sharing(groups: list[list[nn.Parameter]], rank: int, processes: int) -> Any:
    """DeepSpeed's optimizer of one process, before its first step."""
    parts, whole = [], []
    for group in groups:
        flat = torch.cat([one.detach().flatten() for one in group])
        size = -(-len(flat) // processes)  # the last part is filled up
        start, end, at = rank * size, (rank + 1) * size, 0
        copies = [nn.Parameter(one.detach().clone()) for one in group]
        for one in copies:
            low, high = max(at, start), min(at + one.numel(), end)
            here = SimpleNamespace(start=low - start, numel=high - low)
            there = SimpleNamespace(start=low - at, numel=high - low)
            mapping = SimpleNamespace(hp_fragment_address=here, lp_fragment_address=there) if low < high else None
            one._hp_mapping = mapping  # type: ignore[attr-defined]
            at += one.numel()
        whole.append(copies)
        padded = torch.cat([flat, flat.new_zeros(size * processes - len(flat))])
        parts.append(nn.Parameter(padded[start:end].clone()))
    settings = [{"params": [part], "weight_decay": 0.5} for part in parts]
    optimizer = torch.optim.AdamW(settings, lr=1.0)
    return SimpleNamespace(optimizer=optimizer, single_partition_of_fp32_groups=parts, bit16_groups=whole)


class Parted:
    """DeepSpeed's optimizer of ZeRO-3 of one process, before its first step; its subgroups hold one weight each."""

    def __init__(self, groups: list[list[nn.Parameter]], rank: int, processes: int) -> None:
        self.rank, self.processes = rank, processes
        self.fp16_groups = [[nn.Parameter(one.detach().clone())] for group in groups for one in group]
        self.sub_group_to_group_id = dict(enumerate(at for at, group in enumerate(groups) for _ in group))
        self.fp32_partitioned_groups_flat = [nn.Parameter(self.part(one.detach())) for [one] in self.fp16_groups]
        self.grad_position = {at: (at, 0, len(part)) for at, part in enumerate(self.fp32_partitioned_groups_flat)}
        self.optimizer = torch.optim.AdamW([{"params": [], "weight_decay": 0.5} for _ in groups], lr=1.0)

    def part(self, value: torch.Tensor) -> torch.Tensor:
        size = -(-value.numel() // self.processes)  # the last part is filled up
        flat = torch.cat([value.flatten(), value.new_zeros(size * self.processes - value.numel())])
        return flat[self.rank * size : (self.rank + 1) * size].clone()

    def get_param_id(self, parameter: nn.Parameter) -> int:
        return next(at for at, [one] in enumerate(self.fp16_groups) if one is parameter)

    def _get_param_partition_rank(self, parameter: nn.Parameter) -> int:
        return self.rank

    def get_full_hp_param(self, parameter: nn.Parameter, key: str) -> torch.Tensor:
        """What this process tells of it, among zeros."""
        flat = self.fp32_partitioned_groups_flat[self.get_param_id(parameter)]
        told = torch.zeros(len(flat) * self.processes)
        told[self.rank * len(flat) : (self.rank + 1) * len(flat)] = self.optimizer.state[flat][key]
        return told[: parameter.numel()].view(parameter.shape)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(("zero", "sharing"), [(zero, sharing), (zero3, Parted)], ids=["zero2", "zero3"])
def test_a_state_is_shared_out_and_put_together_to_the_same_bits(
    zero: Any, sharing: Any, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, groups = trained()
    state = optimizer.state_dict()
    monkeypatch.setattr("torch.distributed.all_reduce", lambda _: None)  # each process tells its own part; summed below
    found = []
    for rank in range(processes):
        one = sharing(groups, rank, processes)
        zero.scatter(one, state)
        assert [group["lr"] for group in one.optimizer.param_groups] == [0.01, 0.01]
        gathered = zero.gathered(one, keep=True)
        assert gathered is not None
        found.append(gathered)
        assert zero.gathered(one, keep=False) is None, "the others only take part"
    assert all(one["param_groups"] == state["param_groups"] for one in found)
    assert state["state"].keys() == found[0]["state"].keys()
    for number, own in state["state"].items():
        for key, value in own.items():
            said = [one["state"][number][key] for one in found]
            if key == "step":
                assert all(torch.equal(one, value) for one in said)
            else:
                assert torch.equal(sum(said), value), (number, key)
                assert said[0].shape == value.shape


def test_the_parts_of_processes_take_the_step_that_one_process_takes() -> None:
    optimizer, groups = trained()
    two = [sharing(groups, rank, 2) for rank in range(2)]
    for one in two:
        zero.scatter(one, optimizer.state_dict())
    for group in groups:
        for parameter in group:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for one in two:
        for part in one.single_partition_of_fp32_groups:
            part.grad = torch.ones_like(part)
        one.optimizer.step()
    for number, group in enumerate(groups):
        expected = torch.cat([parameter.detach().flatten() for parameter in group])
        flat = torch.cat([one.single_partition_of_fp32_groups[number].detach() for one in two])
        assert torch.equal(flat[: len(expected)], expected)


class Two:
    """As much of the optimizer of ZeRO-2 as takes a step, with two sets of weights in one process."""

    def __init__(self, gradients: list[torch.Tensor]) -> None:
        self.bit16_groups = self.params_in_partition = [[nn.Parameter(torch.zeros_like(one))] for one in gradients]
        self.single_partition_of_fp32_groups = [nn.Parameter(torch.zeros_like(one)) for one in gradients]
        self.averaged_gradients = [[one] for one in gradients]
        self.clip_grad, self.stepped = 1.0, list[int]()

    def get_grad_norm_direct(self, gradients: list[torch.Tensor], _: Any) -> torch.Tensor:
        norm = torch.stack([one.norm() for one in gradients]).norm()
        return torch.where(norm.isfinite(), norm, -1.0)

    def scaled_global_norm(self) -> torch.Tensor:
        raise AssertionError("it stands in front of this")

    def _optimizer_step(self, number: int) -> None:
        self.stepped.append(number)

    def step(self) -> torch.Tensor:
        norm = self.scaled_global_norm()
        for number, [gradient] in enumerate(self.averaged_gradients):
            self.single_partition_of_fp32_groups[number].grad = gradient.clone()
            self._optimizer_step(number)
        return norm


@pytest.mark.parametrize("left_out", ["", "policy", "critic"])
def test_two_sets_of_weights_are_clipped_apart_and_one_may_be_left_out(left_out: str) -> None:
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])]
    two = Two(gradients)
    of = {id(two.bit16_groups[0][0]): "critic", id(two.bit16_groups[1][0]): "policy"}
    Apart(two, lambda parameter: of[id(parameter)], 1.0, lambda name: name == left_out, told="policy")
    assert two.step() == pytest.approx(0.0 if left_out == "policy" else 0.5) and two.clip_grad == 0.0
    assert two.stepped == [number for number, name in enumerate(("critic", "policy")) if name != left_out]
    for number, gradient in enumerate(gradients):
        expected = nn.Parameter(torch.zeros(2))
        expected.grad = gradient.clone()
        nn.utils.clip_grad_norm_([expected], 1.0)
        if number in two.stepped:
            assert torch.equal(two.single_partition_of_fp32_groups[number].grad, expected.grad)  # type: ignore[arg-type]
    two.averaged_gradients[1] = [torch.tensor([torch.nan, 1.0])]
    assert two.step().isnan() == (left_out != "policy"), "DeepSpeed leaves the step out, and the training ends"


def test_groups_that_deepspeed_removes_stand_in_a_checkpoint() -> None:
    """As torch's optimizer and scheduler have them, which ask for as many groups as there were."""
    weights = [nn.Parameter(torch.ones(3))]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    made = [None, dict(optimizer.param_groups[1])]
    optimizer.step()
    scheduler.step()
    whole, settings = optimizer.state_dict()["param_groups"], scheduler.state_dict()
    kept = zero.without_removed(whole, made)
    assert [group["params"] for group in kept] == [[0]]
    assert zero.with_removed(kept, made) == whole
    assert zero.with_removed(settings["base_lrs"][:1], made) == settings["base_lrs"] == [0.5, 0.5]
    assert zero.with_removed(settings["_last_lr"][:1], made) == settings["_last_lr"] == [0.25, 0.25]


def test_the_state_of_other_weights_is_refused() -> None:
    optimizer, groups = trained()
    with pytest.raises(ValueError, match="the checkpoint's optimizer has other weights than the model trains"):
        zero.scatter(sharing([groups[0][:1], groups[1]], 0, 1), optimizer.state_dict())
    with pytest.raises(ValueError, match="the checkpoint's optimizer has other weights than the model trains"):
        zero3.scatter(Parted([groups[0][:1], groups[1]], 0, 1), optimizer.state_dict())
