"""Names of modules in a recipe: what they mean is what they mean to PEFT, on the model in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from align.errors import AlignError, Faults
from align.policy import targets
from align.policy.base import Base
from align.preflight import module_names
from align.preflight.base_modules import Modules, ending
from align.recipe import load
from models import tiny_llama

NAMES = ["q_proj", "proj", "mlp", "attn", "c_proj", "attn.c_proj", "layers.0.mlp.up_proj", "embed_tokens", "ln_1"]
NAMES += ["transformer.h.1.mlp.c_fc", "model.layers.0.self_attn.k_proj", "h.1.mlp", "0.attention.dense", "wte", "up"]
RECIPE = """\
name: chain
model: {base: lab}
parameterization: METHOD
stages:
  sft: {data: lab/helpdesk}
"""


def family(name: str) -> PreTrainedModel:
    small = {"vocab_size": 50, "n_embd": 8, "n_layer": 2, "n_head": 2}
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**small))
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if name == "neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50, **sizes))
    if name == "moe":
        sizes |= {"moe_intermediate_size": 8, "num_key_value_heads": 2, "head_dim": 4, "num_experts": 4}
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=50, num_experts_per_tok=2, **sizes))
    return tiny_llama()


def saved(model: PreTrainedModel, folder: Path) -> Base:
    model.save_pretrained(folder)
    return Base("m", folder, None, json.loads((folder / "config.json").read_text()))


def in_memory(model: torch.nn.Module) -> list[str]:
    """The modules that hold weights, or others that do."""
    return [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]


def as_in_files(name: str, modules: Modules) -> str:
    return name if name in modules.kinds else name.partition(".")[2]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_names_mean_what_they_mean_to_peft(kind: str, tmp_path: Path) -> None:
    model = family(kind)
    modules = Modules.of(saved(model, tmp_path))
    there = in_memory(model)
    assert {as_in_files(name, modules) for name in there} == {*modules.kinds}
    for entry in NAMES:
        config = LoraConfig(target_modules=[entry])
        theirs = [as_in_files(name, modules) for name in there if check_target_module_exists(config, name)]
        assert sorted(modules.named(entry)) == sorted(theirs), entry
    for text in ("q_proj", r".*\.(q_proj|c_fc|dense)", r"model\.layers\.0\..*", ".*"):
        config = LoraConfig(target_modules=["none"], exclude_modules=text)
        gone = [name for name in there if isinstance(check_target_module_exists(config, name), _ExcludedModule)]
        assert sorted(modules.whole(text)) == sorted(as_in_files(name, modules) for name in gone), text
    for key in ("q_proj", "q_pr.*", "proj", "attn.c_proj", "h.0.attn.c_proj", ".*"):
        theirs = [name for name in there if get_pattern_key([key], name) == key]
        assert len(ending(there, key)) == len(theirs), key


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_auto_is_known_before_the_model_is_loaded(kind: str, tmp_path: Path) -> None:
    model = family(kind)
    modules = Modules.of(saved(model, tmp_path))
    found = targets.find(model).modules
    named = [name for name, _ in targets.own_modules(model) if any(name == t or name.endswith(f".{t}") for t in found)]
    assert sorted(modules.projections) == sorted(as_in_files(name, modules) for name in named)


def said(method: str, folder: Path, base: Base | None = None) -> list[str]:
    """What is wrong with a parameterization, on the lab model or on another."""
    from align.policy.base import resolve

    path = folder / "r.yaml"
    path.write_text(RECIPE.replace("METHOD", method))
    try:
        loaded = load.load(path)
    except (AlignError, Faults) as error:
        return [error.what]
    found = module_names.faults(loaded, base or resolve("lab", None, root=Path()))
    return [f"{fault.what} -> {fault.remedy}" for fault in found]


LORA = "{method: lora, lora: {%s}}"


@pytest.mark.parametrize(
    "method",
    [
        LORA % "target_modules: [q_proj, layers.1.mlp.up_proj, embed_tokens], rank_pattern: {q_pr.*: 4, up_proj: 2}",
        LORA % "modules_to_save: [embed_tokens, lm_head], exclude_modules: '.*down_proj'",
        LORA % "target_modules: [q_proj, v_proj], modules_to_save: [layers.0.self_attn.q_proj]",
        LORA % "exclude_modules: [layers.0.self_attn], layers_to_transform: [0, 3]",
        "{method: qlora, lora: {alpha_pattern: {'.*_proj': 8}}}",
        "{method: ia3, peft: {target_modules: [q_proj, down_proj], feedforward_modules: [down_proj]}}",
        "{method: ia3, peft: {target_modules: all-linear, feedforward_modules: []}}",
        "{method: ln_tuning, peft: {target_modules: [input_layernorm]}}",
        "{method: adapter, adapter: {target_modules: [mlp, self_attn]}}",
        "{method: oft, peft: {target_modules: '.*(q|v)_proj'}}",
    ],
)
def test_what_peft_understands_is_left_alone(method: str, tmp_path: Path) -> None:
    assert said(method, tmp_path) == []


ALL = "down_proj, gate_proj, up_proj, k_proj, o_proj, q_proj, v_proj"
PATTERN = "but a list contains module names, not patterns"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (LORA % 'target_modules: [".*_proj"]', [f"'target_modules' lists '.*_proj', {PATTERN} -> write down_proj, "
         "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"]),
        (LORA % 'exclude_modules: ["mlp.*"]', [f"'exclude_modules' lists 'mlp.*', {PATTERN} -> write down_proj, "
         "gate_proj, mlp, up_proj"]),
        (LORA % 'modules_to_save: ["embed.*"]', [f"'modules_to_save' lists 'embed.*', {PATTERN} -> write "
         "embed_tokens"]),
        (LORA % 'modules_to_save: ["("]', [f"'modules_to_save' lists '(', {PATTERN} -> write full names, or their "
         "last parts"]),
        (LORA % "exclude_modules: down_proj", ["'exclude_modules' is 'down_proj': a single string is a pattern for "
         "full names, and it matches no module -> write the list [down_proj]"]),
        (LORA % "exclude_modules: '('", ["'exclude_modules' is '(', which is not a regular expression -> write a list "
         "of names"]),
        (LORA % "target_modules: [q_proj, weight]", ["'target_modules' names 'weight', but no module of the model has "
         "that name -> choose from down_proj, gate_proj, input_layernorm, k_proj, mlp, o_proj, "
         "post_attention_layernorm, q_proj, self_attn, up_proj, v_proj"]),
        (LORA % "target_modules: [embed_tokens, q_proj], layers_to_transform: 1", ["'target_modules' names "
         "'embed_tokens', which is not in any layer of 'layers_to_transform' -> leave it out"]),
        (LORA % "target_modules: [q_proj, v_proj], modules_to_save: [self_attn]", [f"'target_modules' names '{name}', "
         "which 'modules_to_save' trains in full, without an adapter -> remove it from one of them"
         for name in ("q_proj", "v_proj")]),
        (LORA % "alpha_pattern: {'(': 2}", ["'alpha_pattern' has '(', which is not a regular expression -> write the "
         "end of a module's name"]),
        (LORA % "exclude_modules: [q_proj], alpha_pattern: {q_proj: 2}", ["'alpha_pattern' names 'q_proj', which gets "
         "no adapter -> name one that does: down_proj, gate_proj, up_proj, k_proj, o_proj, v_proj"]),
        (LORA % "alpha_pattern: {q_proj: 0}", ["'parameterization.lora.alpha_pattern.q_proj' must be at least 1, "
         "not 0"]),
        ("{method: spectrum, lora: {exclude_modules: [k_prj], rank_pattern: {embed_tokens: 3}}}", ["'exclude_modules' "
         "names 'k_prj', but no module of the model has that name -> did you mean 'k_proj'?", "'rank_pattern' names "
         f"'embed_tokens', which gets no adapter -> name one that does: {ALL}"]),
        ("{method: ia3, peft: {target_modules: [q_proj], feedforward_modules: [up_proj, dawn_proj]}}", [
         "'feedforward_modules' names 'dawn_proj', but no module of the model has that name -> did "
         "you mean 'down_proj'?",
         "'feedforward_modules' names 'up_proj', which 'target_modules' does not -> name it in both"]),
        ("{method: oft, peft: {target_modules: 'model.layers.*.self_attn.*'}}", ["'target_modules' matches "
         "'model.layers.0.self_attn', which is not a linear layer -> name k_proj, o_proj, q_proj, v_proj"]),
        ("{method: vera, peft: {target_modules: [embed_tokens]}}", ["'target_modules' names 'embed_tokens', which is "
         f"not a linear layer -> name {ALL}"]),
        ("{method: adapter, adapter: {target_modules: [mpl]}}", ["'target_modules' names 'mpl', but no module of "
         "the model has that name -> did you mean 'mlp'?"]),
    ],
)  # fmt: skip
def test_what_would_act_less_than_it_says(method: str, expected: list[str], tmp_path: Path) -> None:
    assert said(method, tmp_path) == expected


def test_of_experts_only_what_is_no_name(tmp_path: Path) -> None:
    """Their modules are called otherwise in memory: `mlp.experts.gate_up_proj` stands for many."""
    base = saved(family("moe"), tmp_path / "m")
    assert (
        said(LORA % "target_modules: [q_proj, experts.gate_up_proj], rank_pattern: {gate_up_proj: 2}", tmp_path, base)
        == []
    )
    found = said(LORA % "target_modules: ['q_.*'], layers_to_transform: [3]", tmp_path, base)
    assert found == [
        "'layers_to_transform' names layer 3, but the model has layers 0 to 1 -> name layers that exist",
        f"'target_modules' lists 'q_.*', {PATTERN} -> write full names, or their last parts",
    ]
