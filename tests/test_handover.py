"""What one stage hands to the next: the same adapter, a stack of them, or merged weights; and the reference of DPO."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import models
from align.errors import AlignError, Exit
from align.lab import MODEL_DIR, data
from align.merging import into_base
from align.policy import load as loading
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy
from align.worker.handover import prompts
from models import BASE, FULL, LORA, OTHER_LORA, QLORA, Stages, at_strength

EXACT = {"bf16": False, "dtype": "float32"}  # arithmetic fine enough to be compared digit by digit


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """One graph of stages: every hand-over that there is, four steps each."""
    at = Stages(RunDir(tmp_path_factory.mktemp("handover")))

    def go(id: str, program: str, policy: Policy, method: dict[str, Any], **given: Any) -> Policy:
        return at.execute(at.ticket(id, program, policy, method, **given))

    lora = go("lora", "sft", BASE, LORA, **EXACT)
    go("same", "sft", lora, LORA, **EXACT)
    stack = go("stack", "sft", lora, OTHER_LORA, **EXACT)
    full = go("merged_stack", "sft", stack, FULL, **EXACT)
    go("lora_on_full", "sft", full, LORA, **EXACT)
    qlora = go("qlora", "sft", BASE, QLORA)
    go("merged_qlora", "sft", qlora, FULL)
    go("dpo_lora", "dpo", lora, LORA, **EXACT)
    go("dpo_stack", "dpo", lora, OTHER_LORA, **EXACT)
    go("dpo_qlora", "dpo", qlora, QLORA)
    go("dpo_full", "dpo", full, FULL, **EXACT)
    return at


def policy_of(stages: Stages, id: str) -> Policy:
    policy = stages.outcomes[id].policy
    assert policy is not None
    return policy


def saved(stages: Stages, id: str) -> dict[str, torch.Tensor]:
    return load_file(stages.run.stage(id).model / "adapter_model.safetensors")


def adapter_in(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The tensors of one adapter in memory, by the names that they have in a file."""
    return {key.replace(f".{name}.", "."): tensor for key, tensor in tensors.items() if f".{name}." in key}


def acting(model: torch.nn.Module) -> set[tuple[str, ...]]:
    """The adapters that act, as every layer has them."""
    return {tuple(module.active_adapters) for module in model.modules() if isinstance(module, BaseTunerLayer)}


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one and one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


# Adapters --------------------------------------------------------------------------------------------------------


def test_the_same_settings_go_on_with_the_same_adapter(stages: Stages) -> None:
    [adapter] = policy_of(stages, "same").adapters
    assert (adapter.name, adapter.path, adapter.settings) == ("same", "stages/same/model", LORA)
    job = stages.jobs["same"]
    assert list(job.model.peft_config) == ["default"] == job.model.active_adapters
    assert_equal(adapter_in(stages.before["same"], "default"), saved(stages, "lora"))


def test_other_settings_stack_on_the_earlier_adapter(stages: Stages) -> None:
    first, second = policy_of(stages, "stack").adapters
    assert (first.path, first.settings) == ("stages/lora/model", LORA)
    assert (second.path, second.settings) == ("stages/stack/model", OTHER_LORA)
    job = stages.jobs["stack"]
    (earlier, own), *others = sorted(acting(job.model), key=len, reverse=True)
    assert others == [(earlier,)], "layers that the second adapter has none of"
    assert own == "default", "both act"
    assert_equal(adapter_in(stages.before["stack"], earlier), saved(stages, "lora"))
    after = models.tensors(job.model)
    assert_equal(adapter_in(after, earlier), saved(stages, "lora"))
    assert_equal(adapter_in(after, "default"), saved(stages, "stack"))
    new = adapter_in(stages.before["stack"], "default")
    assert len(new) == 4 * 2 * 2, "A and B of q and v in four layers"
    assert all(not tensor.any() for name, tensor in new.items() if "lora_B" in name), "a new adapter does nothing yet"


@pytest.mark.parametrize("id", ["train", "default"])
def test_a_stage_may_be_called_as_a_part_of_torch_or_peft(stages: Stages, id: str) -> None:
    first = stages.execute(stages.ticket(id, "sft", BASE, LORA, max_steps=1))
    policy = stages.execute(stages.ticket(f"{id}-2", "sft", first, OTHER_LORA, max_steps=1))
    assert [adapter.name for adapter in policy.adapters] == [id, f"{id}-2"]
    assert {len(names) for names in acting(stages.jobs[f"{id}-2"].model)} == {1, 2}


DECLARED: dict[str, Callable[[str], bool]] = {
    "lora": lambda name: ".default." in name,
    "same": lambda name: ".default." in name,
    "stack": lambda name: ".default." in name,
    "lora_on_full": lambda name: ".default." in name,
    "qlora": lambda name: ".default." in name,
    "dpo_lora": lambda name: ".default." in name,
    "dpo_stack": lambda name: ".default." in name,
    "dpo_qlora": lambda name: ".default." in name,
    "merged_stack": lambda name: name.endswith(".weight"),
    "merged_qlora": lambda name: name.endswith(".weight"),
    "dpo_full": lambda name: name.endswith(".weight"),
}


@pytest.mark.parametrize("id", DECLARED)
def test_only_declared_parameters_change(stages: Stages, id: str) -> None:
    before, model = stages.before[id], stages.jobs[id].model
    declared = {name for name in before if DECLARED[id](name)}
    assert models.changed(before, model) == declared, "all of them, and not one bit of another"
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == declared
    numbers = stages.outcomes[id].parameters
    assert numbers["trainable"] == sum(before[name].numel() for name in declared)
    adapters = sum(tensor.numel() for name, tensor in before.items() if "lora_" in name)
    assert numbers["total"] - adapters == 1_924_800, "the base's, whether it is held in 4 bits or in 32"


# Merging ---------------------------------------------------------------------------------------------------------


def update(stages: Stages, id: str, layer: str, method: dict[str, Any]) -> torch.Tensor:
    """alpha / r * B A of one layer, from the file of an adapter."""
    tensors = saved(stages, id)
    found = [tensors.get(f"base_model.model.{layer}.lora_{side}.weight") for side in "BA"]
    if found[0] is None or found[1] is None:
        return torch.zeros(1)
    return method["lora"]["alpha"] / method["lora"]["r"] * found[0] @ found[1]


LAYERS = [
    f"model.layers.{i}.{name}" for i in (0, 3) for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
]


def test_a_stack_is_merged_into_the_base(stages: Stages) -> None:
    policy, merge = policy_of(stages, "merged_stack"), stages.outcomes["merged_stack"].merge
    assert (policy.weights, policy.adapters, policy.quantization) == ("stages/merged_stack/model", [], None)
    assert merge is not None and merge["adapters"] == ["lora", "stack"]
    assert merge["rows"] == 16 and merge["kl"] < 1e-8 and merge["precision_kl"] == 0
    base = load_file(MODEL_DIR / "model.safetensors")
    for layer in LAYERS:
        expected = base[f"{layer}.weight"].float()
        expected = expected + update(stages, "lora", layer, LORA) + update(stages, "stack", layer, OTHER_LORA)
        torch.testing.assert_close(stages.before["merged_stack"][f"{layer}.weight"], expected, rtol=0, atol=1e-6)


def test_a_quantised_policy_is_merged_through_the_dequantised_base(stages: Stages) -> None:
    policy, merge = policy_of(stages, "merged_qlora"), stages.outcomes["merged_qlora"].merge
    assert (policy.weights, policy.adapters, policy.quantization) == ("stages/merged_qlora/model", [], None)
    assert merge is not None and merge["adapters"] == ["qlora"]
    assert merge["kl"] < 1e-8 < 1e-3 < merge["moved_kl"] and merge["dtype"] == "float32"
    held = plain(stages, Policy(base=models.LAB, quantization=policy_of(stages, "qlora").quantization), torch.float32)
    for layer in LAYERS:
        weight = held.get_submodule(layer).weight
        expected = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
        expected = expected + update(stages, "qlora", layer, QLORA)
        torch.testing.assert_close(stages.before["merged_qlora"][f"{layer}.weight"], expected, rtol=0, atol=1e-6)
    assert {tensor.dtype for tensor in stages.before["merged_qlora"].values()} == {torch.float32}
    config = json.loads((stages.run.stage("merged_qlora").model / "config.json").read_text())
    assert "quantization_config" not in config, "nothing says 4 bits any more"


def test_a_merge_that_loses_the_policy_fails(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(into_base, "merged", at_strength(0.5))
    ticket = stages.ticket("refused", "sft", policy_of(stages, "lora"), FULL, rows=data.rows("lab/helpdesk", n=3))
    with pytest.raises(AlignError) as caught:
        stages.execute(ticket)
    says = caught.value
    number = r"[\d.e-]+"
    assert re.fullmatch(
        f"the merged model differs from the adapted one: KL {number} nats per token from the adapted model, loss "
        f"{number} -> {number}, of the base {number}; the adapters change the base by KL {number}",
        says.what,
    )
    assert (
        says.remedy == "keep the adapters by using a parameterization that freezes the base, or use a different dtype"
    )
    assert says.exit == Exit.STAGE_FAILED


def test_an_adapter_over_trained_weights_keeps_them(stages: Stages) -> None:
    policy = policy_of(stages, "lora_on_full")
    assert policy.weights == "stages/merged_stack/model"
    assert [adapter.path for adapter in policy.adapters] == ["stages/lora_on_full/model"]
    assert stages.outcomes["lora_on_full"].merge is None
    weights = load_file(stages.run.root / policy.weights / "model.safetensors")
    for layer in LAYERS:
        found = stages.before["lora_on_full"][f"base_model.model.{layer}.base_layer.weight"]
        assert torch.equal(found, weights[f"{layer}.weight"])


# What others can load --------------------------------------------------------------------------------------------


def plain(stages: Stages, policy: Policy, dtype: torch.dtype) -> torch.nn.Module:
    """The policy by transformers and PEFT alone. Earlier adapters of a stack are merged away one by one."""
    folder = stages.run.root / policy.weights if policy.weights else MODEL_DIR
    config = BitsAndBytesConfig(**policy.quantization) if policy.quantization else None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=config)
    for number, adapter in enumerate(policy.adapters):
        if number:
            model = model.merge_and_unload()
        model = PeftModel.from_pretrained(model, stages.run.root / adapter.path)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


@torch.no_grad()
def logits_of(model: torch.nn.Module, texts: list[list[int]], autocast: bool) -> list[torch.Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float() for ids in texts]


@pytest.mark.parametrize("id", DECLARED)
def test_a_result_loads_without_align(stages: Stages, id: str) -> None:
    folder = stages.run.stage(id).model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        for row in data.rows("lab/helpdesk", n=6)
    ]
    quantised = "qlora" in id and "merged" not in id
    loaded = plain(stages, policy_of(stages, id), torch.bfloat16 if quantised else torch.float32)
    own = stages.jobs[id].model.eval()
    tolerance = {"rtol": 0, "atol": 0 if quantised else 2e-4}  # sums in another order after a merge of a stack
    for found, expected in zip(logits_of(loaded, texts, False), logits_of(own, texts, False), strict=True):
        torch.testing.assert_close(found, expected, **tolerance)


def test_the_policy_of_a_stage_differs_from_the_one_that_came_in(stages: Stages) -> None:
    """Otherwise the comparison above would hold for a result that nobody trained."""
    ids = [AutoTokenizer.from_pretrained(MODEL_DIR)("Help! The lamp I ordered is broken.")["input_ids"]]
    for before, after in (("lora", "dpo_lora"), ("qlora", "dpo_qlora"), ("merged_stack", "dpo_full")):
        one, two = (logits_of(stages.jobs[id].model.eval(), ids, False)[0] for id in (before, after))
        assert (one - two).abs().max() > 0.1


# The reference of DPO --------------------------------------------------------------------------------------------


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, rows: list[dict[str, Any]], answer: str, autocast: bool) -> torch.Tensor:
    """Summed log-probability of each answer after its prompt, one row at a time, without padding."""
    tokenizer, sums = AutoTokenizer.from_pretrained(MODEL_DIR), []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = tokenizer.apply_chat_template(row["prompt"] + row[answer], return_dict=True)["input_ids"]
        assert ids[: len(prompt)] == prompt
        [logits] = logits_of(model, [ids], autocast)
        chosen = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        sums.append(chosen[len(prompt) - 1 :].sum())
    return torch.stack(sums)


@pytest.mark.parametrize(
    ("id", "came_in", "tolerance"),
    [
        ("dpo_lora", "lora", 1e-3),
        ("dpo_stack", "lora", 1e-3),
        ("dpo_full", "merged_stack", 1e-3),
        ("dpo_qlora", "qlora", 0.5),  # bfloat16: three digits of sums of about -80
    ],
)
def test_the_reference_is_the_policy_that_came_in(stages: Stages, id: str, came_in: str, tolerance: float) -> None:
    policy = policy_of(stages, came_in)
    quantised = policy.quantization is not None
    model = plain(stages, policy, torch.bfloat16 if quantised else torch.float32)
    base = plain(stages, BASE, torch.float32)
    reference = models.reference(stages, id)
    rows = data.rows("lab/helpdesk_preferences", n=16)
    for answer in ("chosen", "rejected"):
        expected = log_probabilities(model, rows, answer, autocast=quantised and loading.native_bf16())
        found = reference[f"ref_{answer}_logps"]
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        far = (log_probabilities(base, rows, answer, autocast=False) - expected).abs().mean()
        assert far > 4 * tolerance, "the base itself is another policy"


@pytest.mark.parametrize("id", ["dpo_lora", "dpo_stack", "dpo_qlora", "dpo_full"])
def test_the_margin_begins_at_zero(stages: Stages, id: str) -> None:
    margins, losses = stages.logged(id, "rewards/margins"), stages.logged(id, "loss")
    assert len(margins) == 4
    assert margins[0] == 0.0
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert margins[-1] > 0.05


# Going on after a stop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "program", "came_in", "method"),
    [("again_stack", "sft", "qlora", {**QLORA, "lora": OTHER_LORA["lora"]}), ("again_dpo", "dpo", "qlora", QLORA)],
)
def test_a_stage_over_an_adapter_resumes_bit_for_bit(
    stages: Stages, id: str, program: str, came_in: str, method: dict[str, Any]
) -> None:
    policy = policy_of(stages, came_in)
    ticket = stages.ticket(id, program, policy, method, save_strategy="steps", save_steps=2)
    stages.execute(ticket)
    whole = saved(stages, id)
    ticket.resume_from, began = "checkpoints/checkpoint-2", time.time()
    stages.execute(ticket)
    assert_equal(saved(stages, id), whole)
    assert stages.outcomes[id].resumed_from == "checkpoints/checkpoint-2"
    lines = map(json.loads, stages.run.stage(id).metrics.read_text().splitlines())
    trained = [(entry["step"], entry["time"] > began) for entry in lines if "loss" in entry]
    assert trained == [(1, False), (2, False), (3, True), (4, True)], "only the missing steps were trained again"


def test_rows_of_every_stage_can_be_compared_on() -> None:
    """Prompts alone too, of stages that sample the answers: as the model is asked there."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    asked = [{"role": "user", "content": "Repeat: a b"}]
    talk = [*asked, {"role": "assistant", "content": "a b"}]
    rows = [
        {"prompt": asked},
        {"prompt": "a"},
        {"messages": talk},
        {"prompt": asked, "completion": talk[1:]},
        {"prompt": asked, "chosen": talk[1:], "rejected": talk[1:]},
    ]
    question = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"]
    alone = tokenizer("a" + tokenizer.eos_token)["input_ids"]
    assert prompts(rows, tokenizer) == [question, alone, whole, whole, whole]
    assert len(alone) > 1, "a row of one token has no next one to compare"
