"""Every method, for SFT and DPO, on every family: it learns, trains what it says and no more, is reloaded, resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import models
from align.errors import AlignError
from align.lab import MODEL_DIR
from align.parameterization import method as methods
from align.policy import stack, targets
from align.policy.load import counts
from align.run_folder.paths import RunDir
from align.run_folder.records import BaseModelIdentity, Policy
from models import BASE, Stages, settings
from tests.test_bottleneck import FAMILIES as SHAPES
from tests.test_pairs import plain

EXACT = {"bf16": False, "dtype": "float32"}
# Settings that suit a small model, where PEFT's defaults ask for a large one.
SMALL: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 6, "target_r": 2},
    "c3a": {"block_size": 64},
    "fourierft": {"n_frequency": 50},
    "miss": {"r": 16},
    "psoft": {"r": 16},
    "shira": {"r": 4},
    "vblora": {"vector_length": 64},
    "waveft": {"n_frequency": 50},
}
OWN: dict[str, dict[str, Any]] = {
    "spectrum": {},
    "spectrum-lora": {"lora": {"r": 4, "alpha": 8}},
    "spectrum-qlora": {"lora": {"r": 4, "alpha": 8}, "quantization": {}},
    "adapter": {"adapter": {"r": 16}},
    "adapter-houlsby-4bit": {"adapter": {"r": 16, "placement": "houlsby"}, "quantization": {}},
    "lora-bias": {"lora": {"r": 4, "alpha": 8, "bias": "all"}},
    "lora-head": {"lora": {"r": 4, "alpha": 8, "modules_to_save": ["embed_tokens"]}},
    "ia3-4bit": {"quantization": {}},
}
QUICK = ["spectrum", "spectrum-qlora", "adapter-houlsby-4bit", "lora-bias", "ia3", "prefix_tuning", "adalora"]
OTHERS = [name for name in methods.others() if name != "adamss"]  # which needs a package more
NAMES = [*OWN, *OTHERS]
RATES = {"spectrum": 5e-4, "prefix_tuning": 2e-2, "prompt_tuning": 2e-2, "cartridge": 2e-2, "unilora": 5e-2}
# Their updates are so small, or their steps so random, that four of them show no fall.
SLOW_LEARNERS = ("unilora", "pvera", "fourierft")


def keys(name: str) -> dict[str, Any]:
    return OWN[name] if name in OWN else {"peft": SMALL.get(name, {})}


def marked(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", marked(NAMES))
def test_a_method_through_sft_and_dpo(name: str, tmp_path: Path) -> None:
    stages = Stages(RunDir(tmp_path))
    method = settings(name.partition("-")[0], **keys(name))
    rate = {"learning_rate": RATES.get(name, 5e-3), **EXACT}
    saving = {"save_strategy": "steps", "save_steps": 2}
    ticket = stages.ticket("sft", "sft", BASE, method, rows=models.data.rows("lab/helpdesk", n=8), **rate, **saving)
    ticket.training |= {"per_device_train_batch_size": 8, "max_steps": 6}
    policy = stages.execute(ticket)
    losses = stages.logged("sft", "loss")
    assert losses[-1] < losses[0] or name in SLOW_LEARNERS
    model = stages.jobs["sft"].model
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    changed = models.changed(stages.before["sft"], model)
    assert changed <= trainable, "not one bit of another"
    if name not in ("adalora", "hira"):  # pruned ranks stay at 0
        assert changed == trainable
    whole = models.tensors(model)

    ticket.resume_from = "checkpoints/checkpoint-2"
    stages.execute(ticket)
    resumed = models.tensors(stages.jobs["sft"].model)
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []

    given = {"learning_rate": 1e-3, "max_steps": 2, **EXACT}
    dpo = stages.execute(stages.ticket("dpo", "dpo", policy, method, **given))
    if name != "pvera":  # which draws its updates at random while it trains
        assert stages.logged("dpo", "loss")[0] == pytest.approx(0.6931, abs=1e-3), "log 2"
    loaded = stack.load_policy(dpo, {"dtype": "float32"}, tmp_path)
    ids = torch.arange(5, 45).view(2, 20)
    with torch.no_grad():
        expected = stages.jobs["dpo"].model.eval()(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=0, atol=1e-4)


def test_no_method_on_top_leaves_out_what_is_beneath() -> None:
    """What a trained LoRA does beneath a new adapter is seen, or the method is not allowed on top."""
    ids, silent = torch.arange(5, 45).view(2, 20), []
    for name in OTHERS:
        torch.manual_seed(0)
        below = stack.add(models.tiny_llama(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]), "below").eval()
        for key, parameter in below.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        small = {"vblora": {"vector_length": 16}, "c3a": {"block_size": 16}, "miss": {"r": 4}, "psoft": {"r": 4}}
        small |= {"fourierft": {"n_frequency": 9}, "waveft": {"n_frequency": 9}, "shira": {"r": 1}}
        small |= {"adalora": {"init_r": 4, "target_r": 2}, "road": {"group_size": 2}}
        given = {"target_modules": ["q_proj", "down_proj"]} if name in ("frod", "shira") else {}
        method, own = methods.load(name), settings(name, peft={**given, **small.get(name, {})})
        keys = method.Keys.model_validate(own)
        try:
            model = method.apply(below, keys, "default").eval()
            with_it = model(input_ids=ids).logits
        except (AlignError, RuntimeError, KeyError):  # of PEFT, which does not find the wrapped layers
            assert not method.traits(keys).tops, name
            continue
        for key, parameter in model.named_parameters():
            if "lora_B.below" in key:
                torch.nn.init.zeros_(parameter)
        if torch.allclose(model(input_ids=ids).logits, with_it, rtol=0, atol=1e-5):
            silent.append(name)
            assert not method.traits(keys).tops, name
    assert silent == ["glora", "hra", "supertuning"], "where PEFT mended one, it may go on top"


# Families ------------------------------------------------------------------------------------------------------------

FAMILIES = {**{name: shape for name, (shape, _, _) in SHAPES.items()}, "qwen2": SHAPES["llama"][0]}
ON_FAMILIES = ["full", "lora", "qlora", "spectrum", "adapter"]
LINEAR = {  # of one layer: the names of linear layers and of expert tensors, as the families' own code has them
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "mixtral": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "qwen3_moe": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "falcon": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "bloom": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
}


def family(kind: str) -> Any:
    """A model of a family with the lab's tokens."""
    config = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    special = {key: config[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, **FAMILIES[kind]}
    # whole blocks of 64 in every row, as 4 bits need them
    shape |= {key: 64 for key in ("intermediate_size", "moe_intermediate_size", "ffn_dim") if key in shape}
    shape |= {"head_dim": 32} if "head_dim" in shape else {}
    shape |= {"word_embed_proj_dim": 64, "dropout": 0.0} if kind == "opt" else {}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **special))


def base(kind: str, folder: Path) -> Policy:
    """The same, saved as the base of a run."""
    family(kind).save_pretrained(folder)
    models.lab_tokenizer().save_pretrained(folder)
    return Policy(base=BaseModelIdentity(name=kind, path=str(folder), identity=kind))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_targets_are_the_linear_layers_of_attention_and_mlp(kind: str) -> None:
    found = targets.find(family(kind))
    wanted = LINEAR.get(kind, LINEAR["llama"])
    assert {name.rpartition(".")[2] for name in found.modules} == wanted
    experts = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"] if kind in ("mixtral", "qwen3_moe") else []
    assert found.parameters == experts


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - {"mixtral", "qwen3_moe"}))
def test_the_targets_are_those_of_peft(kind: str) -> None:
    """`all-linear` finds the same weights where there are no experts; OPT has projections around its layers as well."""
    settings = {"r": 2, "task_type": "CAUSAL_LM"}
    ours = get_peft_model(family(kind), LoraConfig(**settings, target_modules=targets.find(family(kind)).modules))
    theirs = get_peft_model(family(kind), LoraConfig(**settings, target_modules="all-linear"))
    assert counts(ours) == counts(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", ON_FAMILIES)
def test_a_method_on_a_family(name: str, kind: str, tmp_path: Path) -> None:
    if name == "qlora" and kind == "gpt2":
        pytest.skip("bitsandbytes quantises no Conv1D on a CPU")
    stages, method = Stages(RunDir(tmp_path / "run")), settings(name)
    rate = 1e-1 if name == "adapter" else 1e-2  # behind the blocks of a random model there is little to learn
    given = {"learning_rate": rate, **({"dtype": "bfloat16"} if name == "qlora" else EXACT)}
    came_in = base(kind, tmp_path / "base")
    ticket = stages.ticket("sft", "sft", came_in, method, save_strategy="steps", save_steps=2, **given)
    policy = stages.execute(ticket)
    losses = stages.logged("sft", "loss")
    assert losses[-1] < losses[0]
    check_declared(stages, "sft", kind)
    whole = models.tensors(stages.jobs["sft"].model)
    ticket.resume_from = "checkpoints/checkpoint-2"
    stages.execute(ticket)
    resumed = models.tensors(stages.jobs["sft"].model)
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []

    dpo = stages.execute(stages.ticket("dpo", "dpo", policy, method, **given))
    assert stages.logged("dpo", "loss")[0] == pytest.approx(0.6931, abs=0.01)
    check_declared(stages, "dpo", kind)
    loaded = plain(stages, dpo, given["dtype"])
    ids = torch.arange(5, 45).view(2, 20)
    with torch.no_grad():
        expected = stages.jobs["dpo"].model.eval()(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=0, atol=1e-4)


def check_declared(stages: Stages, id: str, kind: str) -> None:
    """All trainable weights changed, and not one bit of another; an expert that no token chose stays as it was."""
    model = stages.jobs[id].model
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    changed = models.changed(stages.before[id], model)
    assert changed <= trainable
    assert changed == trainable or kind in ("mixtral", "qwen3_moe")


# Counts --------------------------------------------------------------------------------------------------------------


def test_trainable_counts_by_hand() -> None:
    """LoRA of rank 8 on one 4096 x 4096 matrix has 8 * (4096 + 4096) = 65,536 weights."""
    layer = torch.nn.Module()
    layer.q_proj = torch.nn.Linear(4096, 4096, bias=False, device="meta")
    adapted = get_peft_model(layer, LoraConfig(r=8, target_modules=["q_proj"]))
    assert counts(adapted) == {"total": 4096**2 + 65_536, "trainable": 65_536}


def test_the_lab_s_counts(tmp_path: Path) -> None:
    """Hidden 192, MLP 512, four layers: by hand, for each method."""
    stages, d, m, layers = Stages(RunDir(tmp_path)), 192, 512, 4
    square, wide = 4 * d * d, 3 * d * m
    expected = {
        "lora": 8 * layers * (4 * (d + d) + 3 * (d + m)),
        "adapter": layers * (d * 16 + 16 + 16 * d + d),
        "spectrum": layers // 2 * (square + wide),
        "ia3": layers * (d + d + m),
    }
    given = {"lora": {"lora": {"r": 8}}, "adapter": {"adapter": {"r": 16}}, "spectrum": {}, "ia3": {}}
    for name, own in given.items():
        stages.execute(stages.ticket(name, "sft", BASE, settings(name, **own), max_steps=1, **EXACT))
        assert stages.outcomes[name].parameters["trainable"] == expected[name], name
