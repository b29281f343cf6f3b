"""SFT's KL to the policy that came in: its value and its gradients, whatever the model does to its logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig
from trl import SFTConfig

import gradient_sums
import models
from align.data import tokens
from align.lab import data
from align.penalties import kl
from align.penalties.kl import Incoming, divergence, hidden_states
from align.penalties.quadratic import Penalty
from align.penalties.start import parts
from align.trainers.sft import SftTrainer
from test_penalties import disturb, full, lora

SIZES: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def made(config: Any) -> nn.Module:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config).double().eval()


def gpt2(adapter: bool) -> nn.Module:
    """No step of it is in float32, so that finite differences are exact to many digits."""
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=90, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    )
    if adapter:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["c_attn", "c_fc"]))
        disturb(model, 0.3)
    return model.double().eval()


MODELS: list[tuple[str, Callable[[], nn.Module]]] = [
    ("GPT-2, full", lambda: gpt2(False)),
    ("GPT-2, continued LoRA", lambda: gpt2(True)),
    ("full", full),
    ("new LoRA", lambda: lora(False)),
    ("continued LoRA", lambda: lora(True)),
    ("Gemma 2, whose logits are capped", lambda: made(Gemma2Config(**SIZES, tie_word_embeddings=True))),
    ("Cohere, whose logits have a factor", lambda: made(CohereConfig(**SIZES, logit_scale=0.3))),
    ("Granite, whose logits are divided", lambda: made(GraniteConfig(**SIZES, logits_scaling=4.0))),
]  # fmt: skip


def by_hand(model: nn.Module, reference: torch.Tensor) -> torch.Tensor:
    """From whole logits."""
    p, q = reference.log_softmax(-1), model(input_ids=IDS).logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def ours(model: nn.Module, incoming: Incoming) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    with hidden_states(model, seen):
        model(input_ids=IDS, use_cache=False)
    before = incoming.hidden(model, {"input_ids": IDS, "use_cache": False})
    return divergence(model, incoming, seen[0].flatten(0, 1), before.flatten(0, 1))


@pytest.mark.parametrize(("name", "make"), MODELS, ids=[name for name, _ in MODELS])
def test_value_and_gradients_are_those_from_whole_logits_and_of_finite_differences(
    name: str, make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kl, "LOGITS", 4000)  # a few positions at a time
    model = make()
    incoming, reference = Incoming(model), model(input_ids=IDS).logits.detach()
    assert abs(float(ours(model, incoming).detach())) < 1e-12
    disturb(model, 0.4 if "LoRA" in name else 0.05)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    value, whole = ours(model, incoming), by_hand(model, reference)
    assert float(value.detach()) == pytest.approx(float(whole.detach()), rel=1e-9) and float(value.detach()) > 1e-4
    found = torch.autograd.grad(value, trained)
    for one, other in zip(found, torch.autograd.grad(whole, trained), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)
    drawn = torch.Generator().manual_seed(2)
    way = [torch.randn(one.shape, generator=drawn, dtype=one.dtype) for one in trained]
    slope = sum(float((one * along).sum()) for one, along in zip(found, way, strict=True))
    ends = [stepped(model, trained, way, step, incoming) for step in (1e-5, -1e-5)]
    exact = name.startswith("GPT-2")  # the others normalise in float32
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-7 if exact else 0.05)


@torch.no_grad()
def stepped(model: nn.Module, trained: list[Any], way: list[torch.Tensor], step: float, incoming: Incoming) -> float:
    for parameter, along in zip(trained, way, strict=True):
        parameter += step * along
    found = float(ours(model, incoming))
    for parameter, along in zip(trained, way, strict=True):
        parameter -= step * along
    return found


def test_no_more_logits_are_held_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 positions over 800 tokens, 2000 numbers allow two positions at a time."""
    monkeypatch.setattr(kl, "LOGITS", 2000)
    model = full()
    incoming = Incoming(model)
    widths: list[int] = []
    exact = kl._kl

    def watched(reference: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
        widths.append(len(now))
        return exact(reference, now)

    with mock.patch.object(kl, "_kl", watched):
        ours(model, incoming)
    assert widths == [2] * 6


# ---- in a trainer ---------------------------------------------------------------------------------------------------

ROWS = data.rows("lab/helpdesk", n=8)
NEAR, WEIGHT = 2.0, 0.02


def trainer(
    folder: str,
    accumulation: int = 1,
    processes: int = 1,
    near: bool = True,
    adapter: bool = True,
    moved: bool = True,
) -> Any:
    """An SFT trainer, with all three terms or without; `moved`: whose policy is not where it started any more."""
    args = SFTConfig(
        output_dir=folder, per_device_train_batch_size=8 // accumulation // processes,
        gradient_accumulation_steps=accumulation, dataset_kwargs={"skip_prepare_dataset": True}, **gradient_sums.PLAIN,
    )  # fmt: skip
    model, tokenizer = (lora(True, torch.float32) if adapter else models.tiny_llama()), models.lab_tokenizer()
    columns = tokens.together(tokens.language_modeling(ROWS, None, tokenizer, args, completion_only=True))
    made = SftTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=Dataset.from_dict(columns))
    if near:
        made.stay_near(NEAR)
        made.penalise(penalties(model))
    if moved:
        disturb(model, 0.2 if adapter else 0.02)
    return made


def penalties(model: nn.Module) -> list[Penalty]:
    start = parts(model)
    drawn = torch.Generator().manual_seed(1)
    shapes = {part.name: getattr(part, "shape", None) or part.start.shape for part in start}
    uneven = {name: torch.rand(shape, generator=drawn) * 2 for name, shape in shapes.items()}
    return [Penalty("ewc", WEIGHT, start, uneven), Penalty("l2_sp", 0.01, start)]


def alone(folder: str, adapter: bool) -> list[tuple[float, gradient_sums.Gradients]]:
    """The gradients of the three terms, each by itself: the KL over the tokens of all rows, from whole logits."""
    made = trainer(folder, near=False, adapter=adapter)
    now, start = made.model.eval(), (lora(True, torch.float32) if adapter else models.tiny_llama()).eval()
    rows = [(torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])) for row in made.train_dataset]

    def of_rows(model: nn.Module) -> torch.Tensor:
        logits = [model(input_ids=ids).logits[0, :-1][labels[1:] != -100] for ids, labels in rows]
        return torch.cat(logits).log_softmax(-1)

    reference = of_rows(start).detach()
    apart = lambda model: (reference.exp() * (reference - of_rows(model))).sum(-1).mean()  # noqa: E731
    found = [(NEAR, gradient_sums.of_loss(now, apart))]
    for penalty in penalties(start):
        found.append((penalty.weight, gradient_sums.of_loss(now, penalty.loss)))
    return found


@pytest.mark.parametrize("adapter", [True, False], ids=["LoRA", "full"])
def test_the_gradient_is_the_sum_of_those_of_the_task_and_of_each_term(tmp_path: Path, adapter: bool) -> None:
    by_themselves = alone(str(tmp_path), adapter)
    assert all(weight * gradient_sums.size(one) > 2e-4 for weight, one in by_themselves)
    for accumulation in (1, 4):
        whole = gradient_sums.of_update(trainer(str(tmp_path), accumulation, adapter=adapter))
        plain = gradient_sums.of_update(trainer(str(tmp_path), accumulation, near=False, adapter=adapter))
        assert gradient_sums.difference(whole, plain, by_themselves) < 1e-6, accumulation


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [True, False], ids=["LoRA", "full"])
def test_two_processes_add_the_same(tmp_path: Path, adapter: bool) -> None:
    cases = [
        {"folder": str(tmp_path), "accumulation": accumulation, "processes": 2, "near": near, "adapter": adapter}
        for accumulation in (1, 4)
        for near in (True, False)
    ]
    found = gradient_sums.in_processes("test_kl_to_incoming:trainer", tmp_path, cases)
    by_themselves = alone(str(tmp_path), adapter)
    for whole, plain in (found[:2], found[2:]):
        assert gradient_sums.difference(whole, plain, by_themselves) < 1e-6


def test_what_is_logged(tmp_path: Path) -> None:
    """The KL is that of the update's tokens, however it is cut, and the ratios are there."""
    logs = []
    for accumulation in (1, 4):
        made = trainer(str(tmp_path), accumulation)
        made.train()
        logs.append(made.state.log_history[0])
    for name in ("loss/kl", "loss/ewc", "loss/l2_sp", "gradient_ratio/ewc", "gradient_ratio/l2_sp"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-3) and logs[0][name] > 0


def test_in_bfloat16_both_policies_are_rounded_alike(tmp_path: Path) -> None:
    """Autocast keeps its copies of weights for a whole step: the incoming policy must not get those of the other."""
    with mock.patch.dict(gradient_sums.PLAIN, {"bf16": True, "max_steps": 3, "learning_rate": 0.5}):
        made = trainer(str(tmp_path), adapter=False, moved=False)
    made.train()
    found = [entry["loss/kl"] for entry in made.state.log_history[:3]]
    assert found[0] == 0.0 and 0 < found[1] < found[2]
