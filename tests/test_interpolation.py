"""A share of a stage's update: held against arithmetic on merged weights, for every kind of method that has one."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
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
ADAPTER = "adapter_model.safetensors"
IDS = torch.arange(5, 85).view(2, 40)
SHARES: list[tuple[float, Shape]] = [(0.3, "flat"), (0.3, "lines"), (0.8, "flat"), (0.8, "lines")]


# The policy that each stage starts from, its method, and what else differs.
GRAPH: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("base", LORA, {}),
    "further": ("lora", LORA, {}),
    "rslora": ("base", RSLORA, {}),
    "rslora_further": ("rslora", RSLORA, {}),
    "stacked": ("lora", RSLORA, {}),
    "whole": ("base", WHOLE, {}),
    "whole_further": ("whole", WHOLE, {}),
    "full": ("lora", FULL, {"learning_rate": 1e-3}),  # on an adapter that is merged on the way in
    "spectrum": ("full", SPECTRUM, {"learning_rate": 1e-3}),
    "on_full": ("full", LORA, {}),
    "qlora": ("base", QLORA, {"dtype": "auto"}),
    "ia3": ("base", settings("ia3"), {}),
    "adalora": ("base", settings("adalora", peft={"init_r": 6, "target_r": 2}), {}),
    "ln_tuning": ("lora", settings("ln_tuning"), {"learning_rate": 5e-2}),
}
QUICK = ("lora", "further", "full")


def marked(ids: Iterable[str]) -> list[Any]:
    return [pytest.param(id, marks=[] if id in QUICK else pytest.mark.slow) for id in ids]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """The stages that were asked for so far, four steps each at a high rate."""
    return Stages(RunDir(tmp_path_factory.mktemp("interpolation")))


def policy_of(stages: Stages, id: str) -> Policy:
    """The policy of a stage, which is trained where it was not yet."""
    if id == "base":
        return BASE
    if id not in stages.outcomes:
        before, method, more = GRAPH[id]
        rows = data.rows("lab/helpdesk", n=40)[list(GRAPH).index(id) :][:16]  # other rows for each
        given = {**EXACT, **more}
        ticket = stages.ticket(id, "sft", policy_of(stages, before), method, rows=rows, **given)
        files.write_json(stages.run.stage(id).ticket, ticket.model_dump(mode="json"))
        stages.execute(ticket)
    policy = stages.outcomes[id].policy
    assert policy is not None
    return policy


def loaded(stages: Stages, id: str) -> execute.Loaded:
    ticket = Ticket.model_validate(files.read_json(stages.run.stage(id).ticket))
    return execute.load(stages.run, ticket, lambda: False)


@pytest.fixture(scope="module")
def update(stages: Stages) -> Callable[[str], Update]:
    """The update of each stage, made once and set to one share after the other."""

    @functools.cache
    def made(id: str) -> Update:
        policy = policy_of(stages, id)
        return interpolate.updated(loaded(stages, id), policy)

    return made


@pytest.fixture(scope="module")
def merged(stages: Stages) -> Callable[[str], dict[str, torch.Tensor]]:
    """The weights of a policy with its adapters merged into them, in float32."""

    @functools.cache
    def made(id: str) -> dict[str, torch.Tensor]:
        policy, run = policy_of(stages, id), stages.run.root
        whole = into_base.merged(stack.load_base(policy, FLOAT, run), policy.adapters, run, torch.float32)
        return {name: tensor.detach().clone() for name, tensor in whole.state_dict().items()}

    return made


def arithmetic(w0: dict[str, torch.Tensor], w1: dict[str, torch.Tensor], share: float, shape: Shape) -> torch.Tensor:
    """The logits of W0 + share (W1 - W0), with the shares of the lab's four layers written out."""
    first, last = (share, share) if shape == "flat" else (2 * share - 1, 1.0) if share >= 0.5 else (0.0, 2 * share)
    by_layer = [first + (last - first) * layer / 3 for layer in range(4)]
    weights = {}
    for name in w0:
        layer = re.search(r"layers[.](\d)[.]", name)
        weights[name] = w0[name] + (by_layer[int(layer[1])] if layer else first) * (w1[name] - w0[name])
    model = loading.load_weights(str(MODEL_DIR), FLOAT, torch.float32, None)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.load_state_dict(weights)
    return logits(model.double())  # float32 rounds logits of 12 by up to 1.3e-5 on the way there


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one and one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


# The arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "shape"), SHARES)
@pytest.mark.parametrize("id", marked(id for id in GRAPH if id != "qlora"))
def test_a_share_is_the_arithmetic_of_weights(
    update: Callable[[str], Update],
    merged: Callable[[str], dict[str, torch.Tensor]],
    id: str,
    share: float,
    shape: Shape,
) -> None:
    found, before, after = update(id), merged(GRAPH[id][0]), merged(id)
    found.set(share, shape)
    expected = arithmetic(before, after, share, shape)
    torch.testing.assert_close(logits(copy.deepcopy(found.model).double()), expected, rtol=0, atol=1e-5)
    ends = [arithmetic(before, after, end, "flat") for end in (0.0, 1.0)]
    assert all((expected - end).abs().max() > 1e-3 for end in ends), "between the two, and near neither"


@pytest.mark.parametrize("id", marked(id for id in GRAPH if id != "adalora"))  # whose file lacks the pruned ranks
def test_its_ends_are_the_policies_before_and_after_bit_for_bit(
    stages: Stages, update: Callable[[str], Update], id: str
) -> None:
    found, job = update(id), stages.jobs[id]
    whole = models.tensors(job.model)
    for share, shape in SHARES:
        found.set(share, shape)
    found.set(1.0, "lines")
    assert_same(models.tensors(found.model), whole)
    found.set(0.0, "lines")
    incoming = models.tensors(found.model)
    new = [name for name in incoming if ".lora_" in name and ".default" in name and not id.endswith("further")]
    assert all(not incoming[name].any() for name in new if "lora_B" in name)
    for name in new:  # the A of a new adapter may be any where its B is 0
        incoming[name] = stages.before[id][name]
    assert_same(incoming, stages.before[id])


@pytest.mark.slow
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


def decided(stages: Stages, id: str, share: float, shape: Shape) -> tuple[Update, Policy]:
    """A stage's update at a share, and that policy as it is written."""
    policy_of(stages, id)
    at = loaded(stages, id)
    found = interpolate.updated(at, policy_of(stages, id))
    found.set(share, shape)
    return found, saving.save_policy(replace(at.job, dir=at.job.dir.decided), stages.run)


@pytest.mark.parametrize("id", marked(id for id in GRAPH if id != "qlora"))
def test_what_is_written_is_loaded_as_any_policy(stages: Stages, id: str) -> None:
    found, policy = decided(stages, id, 0.7, "lines")
    ranks = {"further": 16, "rslora_further": 16, "whole": 4, "whole_further": 8, "adalora": found.rank}
    assert found.rank == (None if id in ("full", "spectrum", "ia3", "ln_tuning") else ranks.get(id, 8))
    again = stack.load_policy(policy, FLOAT, stages.run.root)
    torch.testing.assert_close(logits(again), logits(found.model), rtol=0, atol=2e-5)
    assert (policy.adapters[-1].path if GRAPH[id][1] not in (FULL, SPECTRUM) else policy.weights) == (
        f"stages/{id}/decided/model"
    )


@pytest.mark.slow
def test_a_joined_adapter_keeps_its_scale(stages: Stages) -> None:
    found, policy = decided(stages, "rslora_further", 0.5, "flat")
    folder = stages.run.root / policy.adapters[-1].path
    config = files.read_json(folder / "adapter_config.json")
    assert (config["r"], config["use_rslora"], config["alpha_pattern"]) == (16, True, {"q_proj": 4 * 2**0.5})
    assert config["lora_alpha"] / 16**0.5 == pytest.approx(16 / 8**0.5, rel=1e-15)
    both = [load_file(stages.run.stage(id).model / ADAPTER) for id in ("rslora", "rslora_further")]
    name = "base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"
    assert torch.equal(load_file(folder / ADAPTER)[name], torch.cat([each[name] for each in both]))
    found.set(1.0, "flat")
    assert found.model.peft_config["default"].r == 8


@pytest.mark.slow
def test_the_next_stage_goes_on_from_what_was_decided(stages: Stages) -> None:
    found, policy = decided(stages, "further", 0.5, "flat")
    expected = logits(found.model)
    for id, method in (("next", LORA), ("next_full", FULL)):
        given = {**EXACT, "learning_rate": 1e-9, "max_steps": 1}
        stages.execute(stages.ticket(id, "sft", policy, method, rows=data.rows("lab/helpdesk", n=4), **given))
        torch.testing.assert_close(logits(stages.jobs[id].model), expected, rtol=0, atol=2e-5)
    config = stages.jobs["next"].model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (16, 32), "the joined adapter is trained further"
