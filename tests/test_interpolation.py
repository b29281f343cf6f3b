"""A share of a stage's update: held against arithmetic on merged weights, for every kind of method that has one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import models
from align.interpolation.weights import Update
from align.lab import MODEL_DIR, data
from align.merging import into_base
from align.policy import load as loading
from align.policy import stack
from align.run_folder import files
from align.run_folder.interpolation import Shape
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy, Ticket
from align.worker import execute, interpolate, saving
from models import BASE, FULL, LORA, QLORA, Stages, settings

EXACT = {"bf16": False, "dtype": "float32", "learning_rate": 1e-2}
FLOAT = {"dtype": "float32"}
RSLORA = settings("lora", lora={"r": 8, "alpha": 16, "use_rslora": True, "alpha_pattern": {"q_proj": 4}})
WHOLE = settings("lora", lora={"r": 4, "alpha": 8, "modules_to_save": ["embed_tokens"], "bias": "all"})
SPECTRUM = settings("spectrum")
IDS = torch.arange(5, 85).view(2, 40)
SHARES: list[tuple[float, Shape]] = [(0.3, "flat"), (0.3, "lines"), (0.8, "flat"), (0.8, "lines")]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Policies of every kind, four steps each at a high rate."""
    at = Stages(RunDir(tmp_path_factory.mktemp("interpolation")))

    def go(id: str, policy: Policy, method: dict[str, Any], **given: Any) -> Policy:
        rows = data.rows("lab/helpdesk", n=40)[len(at.outcomes) :][:16]  # other rows for each
        ticket = at.ticket(id, "sft", policy, method, rows=rows, **{**EXACT, **given})
        files.write_json(at.run.stage(id).ticket, ticket.model_dump(mode="json"))
        return at.execute(ticket)

    lora = go("lora", BASE, LORA)
    go("further", lora, LORA)
    rslora = go("rslora", BASE, RSLORA)
    go("rslora_further", rslora, RSLORA)
    go("stacked", lora, RSLORA)
    whole = go("whole", BASE, WHOLE)
    go("whole_further", whole, WHOLE)
    full = go("full", lora, FULL, learning_rate=1e-3)  # on an adapter that is merged on the way in
    go("spectrum", full, SPECTRUM, learning_rate=1e-3)
    go("on_full", full, LORA)
    go("qlora", BASE, QLORA, dtype="auto")
    go("ia3", BASE, settings("ia3"))
    return at


def loaded(stages: Stages, id: str) -> execute.Loaded:
    ticket = Ticket.model_validate(files.read_json(stages.run.stage(id).ticket))
    return execute.load(stages.run, ticket, lambda: False)


@pytest.fixture
def update(stages: Stages) -> Callable[[str], Update]:
    def make(id: str) -> Update:
        policy = stages.outcomes[id].policy
        assert policy is not None
        return interpolate.updated(loaded(stages, id), policy)

    return make


def policy_of(stages: Stages, id: str) -> Policy:
    policy = BASE if id == "base" else stages.outcomes[id].policy
    assert policy is not None
    return policy


def merged(stages: Stages, id: str) -> dict[str, torch.Tensor]:
    """The weights of a policy with its adapters merged into them, in float32; a tied head by its own name."""
    policy = policy_of(stages, id)
    whole = into_base.merged(
        stack.load_base(policy, FLOAT, stages.run.root), policy.adapters, stages.run.root, torch.float32
    )
    return {name: parameter.detach().clone() for name, parameter in whole.state_dict().items()}


def arithmetic(stages: Stages, before: str, after: str, share: float, shape: Shape) -> torch.Tensor:
    """The logits of W0 + share (W1 - W0), with the shares of the lab's four layers written out."""
    first, last = (share, share) if shape == "flat" else (2 * share - 1, 1.0) if share >= 0.5 else (0.0, 2 * share)
    by_layer = [first + (last - first) * layer / 3 for layer in range(4)]
    weights, w1 = merged(stages, before), merged(stages, after)
    for name in weights:
        layer = re.search(r"layers[.](\d)[.]", name)
        weights[name] += (by_layer[int(layer[1])] if layer else first) * (w1[name] - weights[name])
    model = loading.load_weights(str(MODEL_DIR), FLOAT, torch.float32, None)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.load_state_dict(weights)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=IDS).logits
    return logits


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one and one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


# The arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "shape"), SHARES)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("base", "lora"),
        ("lora", "further"),
        ("base", "rslora"),
        ("rslora", "rslora_further"),
        ("lora", "stacked"),
        ("base", "whole"),
        ("whole", "whole_further"),
        ("lora", "full"),
        ("full", "spectrum"),
        ("full", "on_full"),
        ("base", "ia3"),
    ],
)
def test_a_share_is_the_arithmetic_of_weights(
    stages: Stages, update: Callable[[str], Update], before: str, after: str, share: float, shape: Shape
) -> None:
    found = update(after)
    found.set(share, shape)
    expected = arithmetic(stages, before, after, share, shape)
    torch.testing.assert_close(logits(found.model), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    ends = [arithmetic(stages, before, after, end, "flat") for end in (0.0, 1.0)]
    assert all((expected - end).abs().max() > 1e-3 for end in ends), "between the two, and near neither"


@pytest.mark.parametrize(
    "id", ["lora", "further", "rslora_further", "stacked", "whole_further", "full", "spectrum", "qlora", "ia3"]
)
def test_its_ends_are_the_policies_before_and_after_bit_for_bit(
    stages: Stages, update: Callable[[str], Update], id: str
) -> None:
    found, job = update(id), stages.jobs[id]
    whole = models.tensors(job.model)
    assert_same(models.tensors(found.model), whole)
    for share, shape in SHARES:
        found.set(share, shape)
    found.set(1.0, "lines")
    assert_same(models.tensors(found.model), whole)
    found.set(0.0, "lines")
    incoming = models.tensors(found.model)
    if id in ("lora", "stacked", "qlora"):  # the A of a new adapter may be any where its B is 0
        assert all(not tensor.any() for name, tensor in incoming.items() if "lora_B.default" in name)
        incoming, before = (
            {k: v for k, v in one.items() if ".default." not in k} for one in (incoming, stages.before[id])
        )
        assert_same(incoming, before)
    else:
        assert_same(incoming, stages.before[id])


def test_a_base_in_four_bits_is_not_touched(stages: Stages, update: Callable[[str], Update]) -> None:
    found = update("qlora")
    found.set(0.6, "lines")
    now, trained = models.tensors(found.model), models.tensors(stages.jobs["qlora"].model)
    assert {name for name in now if not torch.equal(now[name], trained[name])} == {
        name for name in now if "lora_B.default" in name and "layers.3." not in name
    }, "of the last layer the share is 1"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    torch.testing.assert_close(now[name], 0.2 * trained[name])


# What is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "rank"),
    [
        ("lora", 8),
        ("further", 16),
        ("rslora_further", 16),
        ("whole_further", 8),
        ("full", None),
        ("spectrum", None),
        ("ia3", None),
    ],
)
def test_what_is_written_is_loaded_as_any_policy(
    stages: Stages, update: Callable[[str], Update], id: str, rank: int | None
) -> None:
    at = loaded(stages, id)
    found = interpolate.updated(at, policy_of(stages, id))
    found.set(0.7, "lines")
    assert found.rank == rank
    policy = saving.save_policy(interpolate.replace(at.job, dir=at.job.dir.decided), stages.run)
    again = stack.load_policy(policy, FLOAT, stages.run.root)
    torch.testing.assert_close(logits(again), logits(found.model), rtol=0, atol=1e-5)
    assert (policy.weights or policy.adapters[-1].path) == f"stages/{id}/decided/model"


def test_a_joined_adapter_keeps_its_scale(stages: Stages, update: Callable[[str], Update]) -> None:
    at = loaded(stages, "rslora_further")
    found = interpolate.updated(at, policy_of(stages, "rslora_further"))
    found.set(0.5, "flat")
    folder = at.job.dir.decided.model
    saving.save_policy(interpolate.replace(at.job, dir=at.job.dir.decided), stages.run)
    config = files.read_json(folder / "adapter_config.json")
    assert (config["r"], config["use_rslora"], config["alpha_pattern"]) == (16, True, {"q_proj": 4 * 2**0.5})
    assert config["lora_alpha"] / 16**0.5 == pytest.approx(16 / 8**0.5, rel=1e-15)
    stored = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"
    both = [
        load_file(stages.run.stage(id).model / "adapter_model.safetensors")[name] for id in ("rslora", "rslora_further")
    ]
    assert torch.equal(stored[name], torch.cat(both))
    found.set(1.0, "flat")
    assert found.model.peft_config["default"].r == 8


def test_the_next_stage_goes_on_from_what_was_decided(stages: Stages, update: Callable[[str], Update]) -> None:
    at = loaded(stages, "further")
    found = interpolate.updated(at, policy_of(stages, "further"))
    found.set(0.5, "flat")
    policy = saving.save_policy(interpolate.replace(at.job, dir=at.job.dir.decided), stages.run)
    expected = logits(found.model)
    for id, method in (("next", LORA), ("next_full", FULL)):
        given = {**EXACT, "learning_rate": 1e-9, "max_steps": 1}
        stages.execute(stages.ticket(id, "sft", policy, method, rows=data.rows("lab/helpdesk", n=4), **given))
        torch.testing.assert_close(logits(stages.jobs[id].model), expected, rtol=0, atol=1e-5)
    config = stages.jobs["next"].model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (16, 32), "the joined adapter is trained further"
