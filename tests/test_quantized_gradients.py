"""4-bit weights on a CPU: gradients that stay right after an evaluation, and adapters that stay float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from trl import DPOConfig, SFTConfig, SFTTrainer

import models
from align.data import tokens
from align.errors import AlignError
from align.lab import MODEL_DIR, data
from align.parameterization.methods import qlora
from align.policy import load as loading
from align.run_folder.paths import RunDir
from align.trainers.dpo import DpoTrainer
from align.trainers.sft import SftTrainer

Gradients = dict[str, torch.Tensor]


def quantized(compute: str = "bfloat16", dtype: torch.dtype = torch.bfloat16) -> PeftModel:
    """The lab model in NF4 under an adapter that already does something."""
    keys = qlora.Keys.model_validate({**models.QLORA, "quantization": {"bnb_4bit_compute_dtype": compute}})
    base = loading.load_weights(str(MODEL_DIR), {}, dtype, qlora.quantization(keys))
    torch.manual_seed(0)
    model = qlora.apply(base, keys, "default")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def batch() -> dict[str, torch.Tensor]:
    tokenizer = models.lab_tokenizer()
    texts = [row["text"] for row in data.rows("lab/general", n=40) if "text" in row][:6]
    rows = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    return {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"], "labels": labels}


def gradients(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[float, Gradients]:
    model.train()
    model.zero_grad()
    loss = model(**inputs, use_cache=False).loss
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def evaluate(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    model.eval()
    with torch.no_grad():
        model(**inputs, use_cache=False)


def worst_cosine(one: Gradients, two: Gradients) -> float:
    assert one.keys() == two.keys() and len(one) == 4 * 7 * 2, "A and B of seven projections in four layers"
    return min(
        torch.nn.functional.cosine_similarity(one[name].flatten().double(), two[name].flatten().double(), dim=0).item()
        for name in one
    )


def test_gradients_are_the_same_after_an_evaluation() -> None:
    model, inputs = quantized(), batch()
    before_loss, before = gradients(model, inputs)
    evaluate(model, inputs)
    after_loss, after = gradients(model, inputs)
    assert after_loss == before_loss
    assert worst_cosine(before, after) >= 0.999
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gradients_are_those_of_the_dequantised_base() -> None:
    """Against ordinary layers that hold the values which the 4 bits stand for."""
    model, inputs = quantized("float32", torch.float32), batch()
    evaluate(model, inputs)
    loss, found = gradients(model, inputs)
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, bnb.nn.Linear4bit) and not hasattr(child, "lora_A"):
                weight = bnb.functional.dequantize_4bit(child.weight.data, child.weight.quant_state)
                plain = torch.nn.Linear(child.in_features, child.out_features, bias=False)
                plain.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
                setattr(module, name, plain)
    true_loss, truth = gradients(model, inputs)
    assert loss == pytest.approx(true_loss, abs=1e-3)
    assert worst_cosine(found, truth) >= 0.999


@pytest.mark.skipif(not has_avx512bf16(), reason="only a CPU with AVX512-BF16 repacks 4-bit weights")
def test_without_the_pin_an_evaluation_spoils_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails bitsandbytes has mended it, and the pin can go."""
    monkeypatch.setattr(loading, "pin_4bit_layout", lambda model: None)
    model, inputs = quantized(), batch()
    before_loss, before = gradients(model, inputs)
    evaluate(model, inputs)
    after_loss, after = gradients(model, inputs)
    assert after_loss == pytest.approx(before_loss, abs=0.02), "the loss tells nobody"
    assert worst_cosine(before, after) < 0.9


@pytest.mark.parametrize(("program", "name"), [("sft", "lab/helpdesk"), ("dpo", "lab/helpdesk_preferences")])
def test_a_training_with_evaluations_ends_with_the_same_weights(program: str, name: str, tmp_path: Path) -> None:
    stages, rows = models.Stages(RunDir(tmp_path)), data.rows(name, n=24)
    adapters = []
    for id, held, evaluation in (("plain", None, {}), ("held", rows[:6], {"eval_steps": 2})):
        ticket = stages.ticket(id, program, models.BASE, models.QLORA, rows=rows, held=held, max_steps=8, **evaluation)
        stages.execute(ticket)
        adapters.append(load_file(stages.run.stage(id).model / "adapter_model.safetensors"))
    assert len(stages.logged("held", "eval_loss")) == 5
    assert stages.logged("plain", "eval_loss") == []
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    moved = [tensor.abs().max().item() for name, tensor in adapters[0].items() if "lora_B" in name]
    assert min(moved) > 0, "every adapter has learnt"


def sft_trainer(kind: type[SFTTrainer], model: PeftModel, folder: Path) -> SFTTrainer:
    args = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **common(folder))
    tokenizer = models.lab_tokenizer()
    columns = tokens.together(
        tokens.language_modeling(data.rows("lab/helpdesk", n=8), None, tokenizer, args, completion_only=True)
    )
    return kind(model=model, args=args, processing_class=tokenizer, train_dataset=Dataset.from_dict(columns))


def dpo_trainer(model: PeftModel, folder: Path) -> DpoTrainer:
    args = DPOConfig(precompute_ref_log_probs=True, **common(folder))
    tokenizer = models.lab_tokenizer()
    return DpoTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        reference_file=folder / "reference.safetensors",
        train_dataset=Dataset.from_dict(tokens.together(tokens.preference(models.preferences(4), tokenizer, args))),
    )


def common(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "train_sampling_strategy": "random",
        "activation_checkpointing": False,
    }


def adapter_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_adapters_over_a_4_bit_base_stay_float32(kind: str, tmp_path: Path) -> None:
    model = quantized()
    before = adapter_of(model)
    trainer = sft_trainer(SftTrainer, model, tmp_path) if kind == "sft" else dpo_trainer(model, tmp_path)
    after = adapter_of(trainer.model)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "no value has moved"
    trainer.train()
    trained = adapter_of(trainer.model)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    finer = [not torch.equal(t, t.bfloat16().float()) for name, t in trained.items() if "lora_B" in name]
    assert all(finer), "updates are kept finer than bfloat16"


def test_trl_itself_casts_adapters_over_a_4_bit_base(tmp_path: Path) -> None:
    """When this fails TRL keeps them, and align.trainers.base need not put them back."""
    trainer = sft_trainer(SFTTrainer, quantized(), tmp_path)
    assert {tensor.dtype for tensor in adapter_of(trainer.model).values()} == {torch.bfloat16}


def test_rows_that_bitsandbytes_unpacks_wrongly_are_refused(tmp_path: Path) -> None:
    """Rows of 16 weights are no whole blocks of 64; the fault itself is shown in tests/test_nf4.py."""
    models.tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(AlignError) as caught:
        loading.load_weights(str(tmp_path), {}, torch.bfloat16, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    assert str(caught.value) == (
        "on a CPU bitsandbytes unpacks 4-bit rows of 16 weights wrongly (model.layers.0.self_attn.q_proj)\n"
        "  -> use lora here, or qlora on a GPU; rows of a multiple of 64 weights are right"
    )
