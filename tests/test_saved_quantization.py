"""A base that bitsandbytes saved in 4 or 8 bits: used as it is saved, by every way to load it, and exported whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from align.lab import MODEL_DIR
from align.merging.into_base import merged
from align.parameterization import method as methods
from align.policy import load as loading
from align.policy import score_head
from align.policy.stack import TRAINED
from align.preflight import check
from align.recipe import load, resolved
from align.results import export
from align.run_folder.records import Adapter
from error_cases import CHATS
from models import lab_tokenizer, settings
from runs import run, write

BITS: dict[int, dict[str, Any]] = {
    8: {"load_in_8bit": True},
    4: {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "bfloat16"},
}
IDS = torch.arange(5, 45).view(2, 20)
RECIPE = """\
name: saved
model: {base: BASE}
parameterization: {method: METHOD}
forgetting: {probes: none}
stages:
  sft: {data: chats.jsonl, training: {max_steps: 2, learning_rate: 1.0e-3, save_strategy: "no", bf16: false}}
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The lab model as bitsandbytes saves it, by its bits."""
    here = tmp_path_factory.mktemp("bases")
    for bits, given in BITS.items():
        config = BitsAndBytesConfig(**given)
        model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, quantization_config=config, dtype=torch.bfloat16)
        model.save_pretrained(here / f"in_{bits}")
        lab_tokenizer().save_pretrained(here / f"in_{bits}")
    return {bits: here / f"in_{bits}" for bits in BITS}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("asked", [False, True])
def test_it_is_loaded_as_it_is_saved(bases: dict[int, Path], bits: int, asked: bool) -> None:
    """By a method that asks for nothing, and by qlora's words for the same; beside what transformers alone does."""
    quantization = BITS[bits] if asked else None
    ours = loading.load_weights(str(bases[bits]), {}, torch.bfloat16, quantization)
    theirs = AutoModelForCausalLM.from_pretrained(bases[bits], device_map={"": "cpu"}).eval()
    loading.pin_4bit_layout(theirs)
    assert type(ours.model.layers[0].self_attn.q_proj).__name__ == ("Linear8bitLt" if bits == 8 else "Linear4bit")
    assert torch.equal(logits(ours), logits(theirs))
    unpacked = loading.load_weights(str(MODEL_DIR), {}, torch.float32, None)
    near = torch.nn.functional.cosine_similarity(logits(ours).flatten(), logits(unpacked).flatten(), 0)
    assert near > 0.95, "the codes taken for weights are at 0.2"


def test_the_head_of_a_reward_model_is_not_packed(bases: dict[int, Path]) -> None:
    for base in bases.values():
        model = loading.load_weights(str(base), {}, torch.bfloat16, None, "reward")
        assert getattr(model, score_head.SCORE).weight.is_floating_point()


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_compute_dtype_is_the_recipes(bases: dict[int, Path], compute: str) -> None:
    model = loading.load_weights(str(bases[4]), {}, torch.bfloat16, {**BITS[4], "bnb_4bit_compute_dtype": compute})
    assert model.model.layers[0].mlp.up_proj.compute_dtype == getattr(torch, compute)


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_the_unpacked_base(bases: dict[int, Path], bits: int) -> None:
    """On the CPU too, where 8-bit products have a kernel of their own."""
    lora, found = methods.load("lora"), []
    for unpack in (False, True):
        base = loading.load_weights(str(bases[bits]), {}, torch.bfloat16, None)
        base = loading.cast(loading.dequantized(base, torch.float32), torch.float32) if unpack else base
        model = lora.apply(base, lora.Keys.model_validate(settings("lora")), TRAINED).train()
        torch.manual_seed(1)
        own = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
        for parameter in own.values():
            torch.nn.init.normal_(parameter, std=0.02)
        model(input_ids=IDS, labels=IDS).loss.backward()
        found.append(torch.cat([p.grad.flatten().float() for p in own.values() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*found, 0) > 0.999
    assert float(found[0].norm() / found[1].norm()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("bits", "method"), [(8, "lora"), (4, "lora"), (4, "qlora")])
def test_a_run_on_it_is_exported_whole(bases: dict[int, Path], bits: int, method: str, tmp_path: Path) -> None:
    """The merged model, read by transformers alone, is the adapter on the base, read by transformers and PEFT alone."""
    (tmp_path / "chats.jsonl").write_text(CHATS)
    text = RECIPE.replace("BASE", str(bases[bits])).replace("METHOD", method)
    run(write(tmp_path, text), tmp_path / "run")
    merge = export.export(tmp_path / "run", None, tmp_path / "out", "merged", "float32").merge
    assert merge is not None and merge.verdict == "fine"
    assert merge.kl < 1e-8, "what bitsandbytes' products round is no loss of the merge"
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - it is no dict
    assert kinds == {torch.float32}
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(bases[bits], device_map={"": "cpu"})
    adapter = tmp_path / "run/stages/sft/model"
    adapted = logits(PeftModel.from_pretrained(base, adapter))
    near = torch.nn.functional.cosine_similarity(logits(whole).flatten(), adapted.flatten(), 0)
    assert near > 0.9995
    again = loading.load_weights(str(bases[bits]), {}, torch.float32, None)
    one = Adapter(name="sft", path=str(adapter), method=method, settings={})
    assert torch.equal(logits(merged(again, [one], Path(), torch.float32)), logits(whole))


def test_what_a_recipe_leaves_open_is_as_the_base_is_saved(bases: dict[int, Path], tmp_path: Path) -> None:
    """The compute dtype is no part of the stored weights, and stays the recipe's."""
    (tmp_path / "chats.jsonl").write_text(CHATS)
    for bits, expected in ((8, (8, "nf4", True)), (4, (4, "fp4", False))):
        loaded = load.load(write(tmp_path, RECIPE.replace("BASE", str(bases[bits])).replace("METHOD", "qlora")))
        check.prepare(loaded)
        keys: Any = loaded.stages[0].method_keys
        found = keys.quantization
        assert (found.bits, found.bnb_4bit_quant_type, found.bnb_4bit_use_double_quant) == expected
        assert found.bnb_4bit_compute_dtype == "bfloat16"
        again = resolved.resolved(loaded)["stages"]["sft"]["parameterization"]["quantization"]
        assert again["bits"] == bits
