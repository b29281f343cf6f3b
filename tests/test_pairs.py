"""Every parameterization handed to every other, as SFT then DPO: what is kept, what is merged, and the reference."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import models
from align.errors import AlignError
from align.lab import MODEL_DIR, data
from align.policy import stack
from align.policy.load import native_bf16, pin_4bit_layout
from align.recipe import load
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy
from models import BASE, FULL, LORA, QLORA, Stages, settings

METHODS = {
    "full": FULL,
    "lora": LORA,
    "qlora": QLORA,
    "spectrum": settings("spectrum"),
    "adapter": settings("adapter", adapter={"r": 16}),
    "ia3": settings("ia3"),
    "spectrum_lora": settings("spectrum", lora={"r": 4, "alpha": 8}),
}
RATES = {"full": 3e-4, "spectrum": 3e-4}
TRAINS_BASE = ("full", "spectrum")
ASKED = list(itertools.product(("full", "lora", "qlora", "spectrum", "adapter"), repeat=2))
QUICK = [("lora", "adapter"), ("adapter", "lora"), ("adapter", "full"), ("qlora", "spectrum"), ("ia3", "lora")]
QUICK += [("lora", "ia3"), ("qlora", "adapter"), ("spectrum_lora", "qlora"), ("full", "spectrum")]
PAIRS = [pytest.param(*pair, id="-".join(pair)) for pair in QUICK]
PAIRS += [
    pytest.param(*pair, id="-".join(pair), marks=pytest.mark.slow)
    for pair in sorted({*ASKED, ("ia3", "ia3")} - {*QUICK})
]


@pytest.fixture(scope="module")
def firsts(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(RunDir(tmp_path_factory.mktemp("pairs")))


def trained(stages: Stages, method: str) -> Policy:
    """The policy of an SFT, made once."""
    id = f"sft_{method}"
    if id not in stages.outcomes:
        ticket = stages.ticket(id, "sft", BASE, METHODS[method], dtype=dtype(method), **rates(method))
        stages.execute(ticket)
    policy = stages.outcomes[id].policy
    assert policy is not None
    return policy


def dtype(method: str) -> str:
    return "bfloat16" if method == "qlora" else "float32"


def rates(method: str) -> dict[str, Any]:
    return {"learning_rate": RATES.get(method, 4e-3), "bf16": False} | (
        {"bf16": native_bf16()} if method == "qlora" else {}
    )


def plain(stages: Stages, policy: Policy, precision: str) -> torch.nn.Module:
    """A policy loaded as docs/parameterizations.md shows it, with transformers and PEFT."""
    folder = stages.run.root / policy.weights if policy.weights else policy.base.path
    config = BitsAndBytesConfig(**policy.quantization) if policy.quantization else None
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision), quantization_config=config)
    pin_4bit_layout(base)
    model = base
    for adapter in policy.adapters:
        vars(base).pop("peft_config", None)
        model = PeftModel.from_pretrained(base, stages.run.root / adapter.path, adapter_name=f"of_{adapter.name}")
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter([f"of_{adapter.name}" for adapter in policy.adapters])
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module, rows: list[list[int]]) -> list[torch.Tensor]:
    return [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float() for ids in rows]


def rows_of_ids(count: int = 4) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    rows = data.rows("lab/helpdesk", n=count)
    return [tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in rows]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_pair(firsts: Stages, first: str, second: str) -> None:
    came_in = trained(firsts, first)
    id = f"dpo_{first}_{second}"
    precision = dtype(second)
    ticket = firsts.ticket(id, "dpo", came_in, METHODS[second], dtype=precision, **rates(second))
    policy = firsts.execute(ticket)
    check_what_is_kept(policy, came_in, first, second)
    check_what_changed(firsts, id, second)
    check_the_merge(firsts, id, first, second)
    check_the_reference(firsts, id, came_in, precision)
    tolerance = 2e-4 if precision == "float32" else 0.0
    own = firsts.jobs[id].model.eval()
    for found, expected in zip(
        logits(plain(firsts, policy, precision), rows_of_ids()), logits(own, rows_of_ids()), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def check_what_is_kept(policy: Policy, came_in: Policy, first: str, second: str) -> None:
    id = f"dpo_{first}_{second}"
    names = [adapter.name for adapter in policy.adapters]
    kept = [adapter.name for adapter in came_in.adapters]
    if second in TRAINS_BASE:
        assert policy.weights == f"stages/{id}/model"
        assert names == (kept if first == "adapter" else [])
    else:
        assert policy.weights == came_in.weights
        assert names == ([id] if first == second else [*kept, id])


def check_what_changed(stages: Stages, id: str, second: str) -> None:
    """Exactly the declared weights: all of the base's, the chosen modules', or the new adapter's."""
    before, model = stages.before[id], stages.jobs[id].model
    changed = models.changed(before, model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed == trainable
    if second not in TRAINS_BASE:
        assert all("default" in name.split(".") for name in trainable)
    elif second == "full":
        assert trainable == {name for name, _ in model.named_parameters() if "bottleneck" not in name}
    else:
        modules = {name.removesuffix(".weight") for name in trainable}
        assert modules == set(stages.outcomes[id].trained)
        assert len(modules) == 14, "half of each of seven types in four layers"


def check_the_merge(stages: Stages, id: str, first: str, second: str) -> None:
    merge = stages.outcomes[id].merge
    if second in TRAINS_BASE and first in ("lora", "qlora", "ia3", "spectrum_lora"):
        assert merge is not None and merge["adapters"] == [f"sft_{first}"] and merge["kl"] < 1e-3 < merge["moved_kl"]
    else:
        assert merge is None


@torch.no_grad()
def check_the_reference(stages: Stages, id: str, came_in: Policy, precision: str) -> None:
    """The margin is 0 before the first step and is not after; the log-probabilities are those of the loaded policy."""
    margins = stages.logged(id, "rewards/margins")
    exact = precision == "float32"
    assert margins[0] == 0.0
    assert abs(margins[-1]) > 0.02
    if not exact or came_in.quantization:
        return
    model, tokenizer = plain(stages, came_in, precision), AutoTokenizer.from_pretrained(MODEL_DIR)
    reference = models.reference(stages, id)
    for number, row in enumerate(data.rows("lab/helpdesk_preferences", n=16)[:4]):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], return_dict=True)["input_ids"]
        [found] = logits(model, [ids])
        each = found[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        expected = each[len(prompt) - 1 :].sum()
        torch.testing.assert_close(reference["ref_chosen_logps"][number], expected, rtol=0, atol=2e-3)


def test_three_methods_on_one_another(firsts: Stages) -> None:
    """LoRA, IA3 over it, and another LoRA over both: each in its own file, all acting."""
    lora = trained(firsts, "lora")
    two = firsts.execute(firsts.ticket("two", "sft", lora, METHODS["ia3"], dtype="float32", **rates("ia3")))
    other = settings("lora", lora={"r": 2, "alpha": 4, "target_modules": ["q_proj"]})
    three = firsts.execute(firsts.ticket("three", "sft", two, other, dtype="float32", **rates("lora")))
    assert [adapter.method for adapter in three.adapters] == ["lora", "ia3", "lora"]
    own = load_file(firsts.run.stage("three").model / "adapter_model.safetensors")
    assert len(own) == 4 * 2 and all("q_proj.lora_" in name for name in own), "nothing of those beneath"
    loaded = plain(firsts, three, "float32")
    for found, expected in zip(
        logits(loaded, rows_of_ids()), logits(firsts.jobs["three"].model.eval(), rows_of_ids()), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    merged = firsts.execute(
        firsts.ticket("merged", "sft", three, FULL, dtype="float32", max_steps=1, learning_rate=1e-6)
    )
    assert merged.adapters == []
    assert firsts.outcomes["merged"].merge is not None
    assert firsts.outcomes["merged"].merge["adapters"] == ["sft_lora", "two", "three"]
    assert firsts.outcomes["merged"].merge["kl"] < 1e-8


@pytest.mark.parametrize(
    ("first", "second", "remedy"),
    [
        ("{method: prefix_tuning}", "{method: lora}", "give both stages the same parameterization, or 'sft' another"),
        ("{method: prefix_tuning}", "{method: full}", "give both stages the same parameterization, or 'sft' another"),
        (
            "{method: lora, lora: {modules_to_save: [lm_head]}}",
            "{method: ia3}",
            "give both stages the same parameterization, or 'sft' another, without modules_to_save",
        ),
    ],
)
def test_what_cannot_go_on_is_refused_before_anything_is_loaded(
    tmp_path: Path, first: str, second: str, remedy: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: pair\nmodel: {base: lab}\nstages:\n"
        f"  sft: {{data: lab/helpdesk, parameterization: {first}}}\n"
        f"  dpo: {{policy: sft, data: lab/helpdesk_preferences, parameterization: {second}}}\n"
    )
    with pytest.raises(AlignError) as caught:
        load.load(path)
    names = [text.partition("method: ")[2].partition(",")[0].rstrip("}") for text in (first, second)]
    said = f"{path}:5:3: stage 'dpo' cannot continue from the {names[0]} of stage 'sft' with {names[1]}\n  -> {remedy}"
    assert str(caught.value) == said


def test_whole_modules_of_a_second_adapter_are_trained(firsts: Stages) -> None:
    """Of the same method too, where PEFT would hold both in one model and switch the modules of neither on."""
    method = settings("lora", lora={"r": 4, "alpha": 8, "modules_to_save": ["model.norm"]})
    came_in = trained(firsts, "lora")
    policy = firsts.execute(firsts.ticket("norm", "sft", came_in, method, dtype="float32", **rates("lora")))
    before = load_file(MODEL_DIR / "model.safetensors")["model.norm.weight"].float()
    own = load_file(firsts.run.stage("norm").model / "adapter_model.safetensors")
    [name] = [name for name in own if "norm" in name]
    assert not torch.equal(own[name].float(), before)
    loaded = stack.load_policy(policy, {"dtype": "float32"}, firsts.run.root)
    for found, expected in zip(
        logits(loaded, rows_of_ids()), logits(firsts.jobs["norm"].model.eval(), rows_of_ids()), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_stage_that_would_train_nothing_fails(firsts: Stages) -> None:
    method = settings("spectrum")
    ticket = firsts.ticket("nothing", "sft", BASE, method, dtype="float32", **rates("spectrum"))
    frozen = mock.patch("align.parameterization.methods.spectrum.apply", lambda model, *_: model.requires_grad_(False))
    with frozen, pytest.raises(AlignError) as caught:
        firsts.execute(ticket)
    assert str(caught.value) == (
        "the parameterization of stage 'nothing' leaves no weight to train\n  -> fix the keys of `spectrum`"
    )
