"""Bottleneck adapters: what they compute, which weights train, how they are saved, and how they stack with LoRA."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils.peft_types import PeftType
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, MambaConfig, MambaForCausalLM

from align.bottleneck.config import BottleneckConfig
from align.bottleneck.layer import BottleneckLayer
from align.bottleneck.model import find_blocks
from align.policy.load import pin_4bit_layout
from tests.models import changed, tensors

D, R, LAYERS = 16, 4, 2
IDS = torch.arange(12).view(2, 6) + 3
SMALL = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "vocab_size": 32, "pad_token_id": 0}
GATED = {"intermediate_size": 32, "num_key_value_heads": 2}
# model type: its settings, and what follows the attention and the MLP, read off the model's own code
FAMILIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "llama": (GATED, "self_attn", "mlp"),
    "mistral": (GATED, "self_attn", "mlp"),
    "qwen3": ({**GATED, "head_dim": 8}, "self_attn", "mlp"),
    "qwen3_moe": (
        {**GATED, "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
        "self_attn",
        "mlp",
    ),
    "mixtral": ({**GATED, "num_local_experts": 4}, "self_attn", "mlp"),
    "gemma2": ({**GATED, "head_dim": 8}, "self_attn", "mlp"),
    "gemma3_text": ({**GATED, "head_dim": 8}, "self_attn", "mlp"),
    "phi3": (GATED, "self_attn", "mlp"),
    "gpt2": ({}, "attn", "mlp"),
    "gpt_neox": ({"intermediate_size": 32}, "attention", "mlp"),
    "falcon": ({}, "self_attention", "mlp"),
    "bloom": ({}, "self_attention.dense", "mlp.dense_4h_to_h"),
    "opt": ({"ffn_dim": 32, "word_embed_proj_dim": D}, "self_attn", "fc2"),
}
NO_MERGE = (
    "a bottleneck adapter is non-linear and cannot be merged into the weights of its base: "
    "keep it as an adapter, or call unload() to remove it"
)


def tiny(kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **FAMILIES[kind][0]}))
    return model.to(dtype).eval()


def bottleneck(**settings: Any) -> BottleneckConfig:
    return BottleneckConfig(**{"r": R, "task_type": "CAUSAL_LM", **settings})


def lora() -> LoraConfig:
    return LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear")


def over(below: Any, config: PeftConfig, name: str) -> Any:
    """A new adapter over a model that has some, without PEFT's warning that it has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are trying to modify a model with PEFT for a second time")
        return get_peft_model(below, config, adapter_name=name)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def loss(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, labels=IDS).loss
    return found


def spread(model: Any, mark: str = "bottleneck_", seed: int = 5) -> None:
    """Adapters as if they were trained."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if mark in name:
            torch.nn.init.normal_(parameter, std=0.3)


def trainable(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def saved(folder: Path, config: PeftConfig, mark: str) -> torch.Tensor:
    """An adapter in a folder, and the logits of the model that it was saved from."""
    model = get_peft_model(tiny(), config)
    spread(model, mark)
    model.save_pretrained(folder)
    return logits(model)


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_starts_as_its_base_and_trains_only_the_adapters(kind: str, placement: str) -> None:
    base = tiny(kind)
    before, untouched = logits(base), tensors(base)
    model = get_peft_model(base, bottleneck(placement=placement))
    assert torch.equal(logits(model), before)
    _, attention, mlp = FAMILIES[kind]
    expected = {"pfeiffer": {mlp}, "houlsby": {attention, mlp}}[placement]
    owners = {
        re.sub(r".*\.\d+\.|\.adapter", "", name)
        for name, module in base.named_modules()
        if isinstance(module, BottleneckLayer)
    }
    assert owners == expected
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert count == LAYERS * len(expected) * (D * R + R + R * D + D)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    first = loss(model).item()
    for _ in range(3):
        loss(model).backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable(model)
        optimizer.step()
        optimizer.zero_grad()
    assert loss(model).item() < first
    assert not torch.equal(logits(model), before)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert model.unload() is base
    assert changed(untouched, base) == set()
    assert torch.equal(logits(base), before)


@pytest.mark.parametrize("non_linearity", ["gelu", "relu", "silu", "tanh"])
def test_the_output_is_the_residual_and_the_two_projections(non_linearity: str) -> None:
    base = tiny()
    model = get_peft_model(base, bottleneck(non_linearity=non_linearity))
    spread(model)
    block = base.model.layers[0].mlp
    down, up = block.adapter.bottleneck_down["default"], block.adapter.bottleneck_up["default"]
    x = torch.randn(2, 3, D)
    with torch.no_grad(), model.disable_adapter():
        plain = block(x)
    inner = getattr(torch, non_linearity, getattr(functional, non_linearity, None))(plain @ down.weight.T + down.bias)
    expected = plain + inner @ up.weight.T + up.bias
    torch.testing.assert_close(block(x), expected)


def test_dropout_acts_in_training_only() -> None:
    model = get_peft_model(tiny(), bottleneck(dropout=0.5))
    spread(model)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_layers_can_be_chosen_and_their_names_survive_saving(tmp_path: Path) -> None:
    model = get_peft_model(tiny(), bottleneck(layers_to_transform=1, placement="houlsby"))
    names = ["model.layers.1.mlp", "model.layers.1.self_attn"]
    assert model.base_model.targeted_module_names == names[::-1]
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {key: settings[key] for key in ("peft_type", "r", "placement", "non_linearity", "target_modules")} == {
        "peft_type": "BOTTLENECK",
        "r": R,
        "placement": "houlsby",
        "non_linearity": "gelu",
        "target_modules": names,
    }
    again = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(again, BottleneckConfig) and again.target_modules == set(names)
    assert copy.deepcopy(again.peft_type) is PeftType("BOTTLENECK")


def test_adapters_switch_by_name_and_compose_in_order(tmp_path: Path) -> None:
    base = tiny()
    alone = logits(base)
    model = get_peft_model(base, bottleneck(), adapter_name="one")
    model.add_adapter("two", bottleneck(r=3, non_linearity="relu", placement="houlsby"))
    spread(model)
    by_name = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        by_name[name] = logits(model)
        assert {key.split(".")[-2] for key in trainable(model)} == {name}
    for order in (["one", "two"], ["two", "one"]):
        model.base_model.set_adapter(order)
        by_name["".join(order)] = logits(model)
    found = [alone, *by_name.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])
    block, x = base.model.layers[0].mlp, torch.randn(1, 2, D)  # now two, then one
    with torch.no_grad():
        model.set_adapter("two")
        first = block(x)
        model.set_adapter("one")
        expected = block.adapter(first)
        model.base_model.set_adapter(["two", "one"])
        torch.testing.assert_close(block(x), expected)
    model.save_pretrained(tmp_path)
    for name in ("one", "two"):
        assert torch.equal(logits(PeftModel.from_pretrained(tiny(), tmp_path / name)), by_name[name])
    model.base_model.set_adapter("two")
    model.delete_adapter("one")
    assert list(model.peft_config) == ["two"] and not [name for name, _ in model.named_parameters() if ".one." in name]
    assert torch.equal(logits(model), by_name["two"])


def test_a_copy_uses_its_own_adapters() -> None:
    model = get_peft_model(tiny(), bottleneck())
    before = logits(model)
    twin = copy.deepcopy(model)
    spread(model)
    assert torch.equal(logits(twin), before)
    assert not torch.equal(logits(model), before)


def test_modules_to_save_train_and_go_with_unload(tmp_path: Path) -> None:
    base = tiny()
    before = logits(base)
    model = get_peft_model(base, bottleneck(modules_to_save=["lm_head"]))
    spread(model, "modules_to_save")
    spread(model)
    assert "base_model.model.lm_head.modules_to_save.default.weight" in trainable(model)
    after = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny(), tmp_path)), after)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model.unload()), before)


def test_merging_is_refused() -> None:
    model = get_peft_model(tiny(), bottleneck())
    layer = model.base_model.model.model.layers[0].mlp.adapter
    for merge in (model.merge_and_unload, model.merge_adapter, layer.merge):
        with pytest.raises(ValueError) as error:
            merge()
        assert str(error.value) == NO_MERGE


def test_adapters_are_float32_over_bfloat16_and_the_hidden_state_keeps_its_type() -> None:
    base = tiny(dtype=torch.bfloat16)
    before = logits(base)
    model = get_peft_model(base, bottleneck(), autocast_adapter_dtype=False)
    assert torch.equal(logits(model), before) and before.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    spread(model)
    assert base.model.layers[0].mlp(torch.randn(1, 2, D).bfloat16()).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny().save_pretrained(folder)
    return folder


def four_bit(folder: Path) -> Any:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    pin_4bit_layout(model)
    return model.eval()


def test_adapters_stack_over_lora_over_a_4bit_base(quantized: Path, tmp_path: Path) -> None:
    saved(tmp_path / "lora", lora(), "lora_")
    below = PeftModel.from_pretrained(four_bit(quantized), tmp_path / "lora", adapter_name="sft")
    beneath = logits(below)
    assert not torch.equal(beneath, logits(four_bit(quantized)))
    model = over(below.get_base_model(), bottleneck(placement="houlsby"), "new")
    assert torch.equal(logits(model), beneath)
    before = tensors(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    first = loss(model).item()
    for _ in range(3):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss(model).item() < first
    assert changed(before, model) == trainable(model)
    assert {key.split(".")[-3] for key in trainable(model)} == {"bottleneck_down", "bottleneck_up"}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(four_bit(quantized), tmp_path / "lora", adapter_name="sft")
    again = PeftModel.from_pretrained(again.get_base_model(), tmp_path / "new")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = get_peft_model(tiny(), bottleneck(placement="houlsby"))
        spread(model)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        loss(model).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 4 * 2 * LAYERS
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize("nested", [False, True])
def test_over_lora_it_is_saved_alone_and_lora_stays_active_and_frozen(tmp_path: Path, nested: bool) -> None:
    beneath = saved(tmp_path / "lora", lora(), "lora_")
    below = PeftModel.from_pretrained(tiny(), tmp_path / "lora", adapter_name="sft", is_trainable=True)
    model = over(below if nested else below.get_base_model(), bottleneck(), "new")
    assert isinstance(model, PeftModel) and list(model.peft_config) == ["new"] and list(below.peft_config) == ["sft"]
    spread(model)
    names, both = trainable(model), logits(model)
    assert {key.split(".")[-2] for key in names} == {"new"}
    with model.disable_adapter():
        assert torch.equal(logits(model), beneath)
    assert trainable(model) == names and torch.equal(logits(model), both)
    model.save_pretrained(tmp_path, selected_adapters=["new"])
    again = PeftModel.from_pretrained(tiny(), tmp_path / "lora", adapter_name="sft")
    again = PeftModel.from_pretrained(again if nested else again.get_base_model(), tmp_path / "new")
    assert torch.equal(logits(again), both)
    keys = set(PeftModel.from_pretrained(tiny(), tmp_path / "new").state_dict()) - {
        f"base_model.model.{k}" for k in tiny().state_dict()
    }
    assert all(".adapter.bottleneck_" in key for key in keys) and len(keys) == 4 * LAYERS
    unloaded = model.unload()
    assert torch.equal(logits(unloaded), beneath) and list(unloaded.peft_config) == ["sft"]


def test_lora_over_it_reaches_every_linear_layer_and_loads_without_it(tmp_path: Path) -> None:
    beneath = saved(tmp_path / "bottleneck", bottleneck(placement="houlsby"), "bottleneck_")
    below = PeftModel.from_pretrained(tiny(), tmp_path / "bottleneck", adapter_name="sft").get_base_model()
    model = over(below, lora(), "new")
    plain = get_peft_model(tiny(), lora(), adapter_name="new")
    assert torch.equal(logits(model), beneath)
    assert trainable(model) == trainable(plain) and len(trainable(model)) == 7 * 2 * LAYERS
    spread(model, "lora_")
    both = logits(model)
    model.save_pretrained(tmp_path, selected_adapters=["new"])
    again = PeftModel.from_pretrained(tiny(), tmp_path / "bottleneck", adapter_name="sft")
    with pytest.warns(UserWarning, match="Already found a `peft_config` attribute in the model"):
        again = PeftModel.from_pretrained(again.get_base_model(), tmp_path / "new", adapter_name="new")
    assert torch.equal(logits(again), both)
    with model.disable_adapter():  # LoRA's own switches off every method
        assert torch.equal(logits(model), logits(tiny()))
    assert {key.split(".")[-2] for key in trainable(model)} == {"new"}  # and leaves what was frozen frozen
    assert torch.equal(logits(model), both)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged), both, rtol=1e-4, atol=1e-5)


def test_modules_that_lora_saves_whole_stay_on_beneath(tmp_path: Path) -> None:
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    beneath = saved(tmp_path, config, "modules_to_save")
    below = PeftModel.from_pretrained(tiny(), tmp_path, adapter_name="sft")
    model = over(below.get_base_model(), bottleneck(), "new")
    assert torch.equal(logits(model), beneath)
    assert torch.equal(logits(model.unload()), beneath)


def test_a_second_bottleneck_model_is_refused() -> None:
    model = get_peft_model(tiny(), bottleneck())
    with pytest.raises(ValueError) as error:
        over(model.get_base_model(), bottleneck(), "second")
    assert str(error.value) == (
        "the model already has bottleneck adapters: add another with add_adapter() or load_adapter(), and "
        "activate several with base_model.set_adapter([...])"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r must be a whole number of at least 1, not 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"non_linearity": "elu"}, "non_linearity must be one of gelu, relu, silu, tanh, not 'elu'"),
        ({"placement": "both"}, "placement must be one of pfeiffer, houlsby, not 'both'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        BottleneckConfig(**settings)
    assert str(error.value) == message


def test_a_model_without_the_two_blocks_is_refused_and_left_as_it_was() -> None:
    model = MambaForCausalLM(MambaConfig(hidden_size=D, num_hidden_layers=LAYERS, vocab_size=32))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ValueError) as error:
        get_peft_model(model, bottleneck())
    assert str(error.value) == (
        "the attention and MLP blocks of MambaForCausalLM cannot be determined from its structure: name the "
        "blocks that get an adapter in target_modules"
    )
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    named = get_peft_model(model, bottleneck(target_modules=["mixer"]))
    assert len(trainable(named)) == 4 * LAYERS


def test_a_layer_beyond_the_last_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        find_blocks(tiny(), "pfeiffer", [0, 2])
    assert str(error.value) == ("layers_to_transform names layer 2, but LlamaForCausalLM has 2 layers, counted from 0")


def test_a_block_of_another_width_is_refused() -> None:
    model = get_peft_model(tiny(), bottleneck())
    layer = model.base_model.model.model.layers[0].mlp.adapter
    with pytest.raises(ValueError) as error:
        layer(torch.zeros(1, 2, D + 1))
    assert str(error.value) == f"a bottleneck adapter needs a hidden state of width {D}, but got shape (1, 2, {D + 1})"
    with pytest.raises(ValueError) as error:
        layer({"hidden": 1})
    assert str(error.value) == f"a bottleneck adapter needs a hidden state of width {D}, but got dict"


def python(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LIGHT = """
import sys, importlib.util
import align
spec = importlib.util.find_spec("peft")       # looks, and imports nothing
import importlib.metadata as metadata, importlib.resources as resources
metadata.version("peft"); resources.files(align)
print(sorted({"torch", "peft", "transformers"} & set(sys.modules)), type(spec.loader).__name__)
"""


def test_importing_align_imports_neither_torch_nor_peft() -> None:
    assert python(LIGHT) == "[] SourceFileLoader"


RELOAD = """
import sys, torch
import align.bottleneck
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
torch.save(model(torch.arange(12).view(2, 6) + 3).logits.detach(), sys.argv[3])
"""


def test_a_saved_adapter_loads_with_plain_peft_in_a_new_process(quantized: Path, tmp_path: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(quantized).eval(), bottleneck(placement="houlsby"))
    spread(model)
    model.save_pretrained(tmp_path)
    python(RELOAD, quantized, tmp_path, tmp_path / "logits.pt")
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


ORDERS = [
    "import align.bottleneck, peft",
    "import peft, align.bottleneck",
    "from align.bottleneck.config import BottleneckConfig",
    "import align.bottleneck.layer",
    "import align.bottleneck.model",
    "import threading\n"
    "tasks = [threading.Thread(target=__import__, args=(n,)) for n in ('peft', 'align.bottleneck.config', 'peft')]\n"
    "[task.start() for task in tasks]; [task.join() for task in tasks]",
]
KNOWN = """
import pickle
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs, PEFT_TYPE_TO_TUNER_MAPPING as tuners
kind = PeftType("BOTTLENECK")
assert pickle.loads(pickle.dumps(kind)) is kind is PeftType.BOTTLENECK and kind in list(PeftType)
assert (configs["BOTTLENECK"].__name__, tuners[kind].__name__) == ("BottleneckConfig", "BottleneckModel")
"""
# What peft itself needs is imported once; each order then runs in a fork, where neither align nor peft is yet.
FORKS = """
import json, os, sys
import torch, accelerate, transformers.pytorch_utils
from transformers import PreTrainedModel
orders, known = json.loads(sys.argv[1]), sys.argv[2]
assert not {"peft", "align"} & set(sys.modules)
for order in orders:
    child = os.fork()
    if not child:
        try:
            exec(order + "\\n" + known, {})
        except BaseException as error:
            print(f"{order}: {error!r}", flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, order
"""


@pytest.mark.slow
def test_peft_knows_the_method_in_every_order_of_imports() -> None:
    unknown = "ValueError(\"'BOTTLENECK' is not a valid PeftType\")"
    alone = ["import peft", "import align, peft"]
    assert python(FORKS, json.dumps([*ORDERS, *alone]), KNOWN) == "\n".join(f"{order}: {unknown}" for order in alone)
