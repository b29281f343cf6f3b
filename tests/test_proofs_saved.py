"""What was saved is what was trained, and all processes hold it: right, and wrong in every way that is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import models
from align.errors import AlignError, Exit
from align.lab import MODEL_DIR
from align.parameterization import method as methods
from align.policy import load, stack
from align.proofs import saved, weights
from align.proofs.weights import Digest, digest
from align.run_folder.proofs import RanksAgree
from test_methods import NAMES, keys

NO_FILE = "there is no file of weights"
REMEDY = (
    "see that the disk of {folder} is sound and not full, and run the same command again: it saves once more from the "
    "last checkpoint; if it comes again, the engine of this launch does not gather its weights before saving"
)
APART = (
    "each process has trained alone, or one missed an update: look at what the stage's own code changes in one process "
    "only, and at log.txt and log.rank1.txt in the folder of the stage; nothing was saved"
)
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
PROMPT = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}


def adapted(config: Any, seed: int = 0) -> PeftModel:
    """The tiny model with an adapter none of whose weights is 0."""
    model: Any = get_peft_model(models.tiny_llama(), config)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    return model  # type: ignore[no-any-return]


def refused(folder: Path, model: Any, trained: dict[str, Digest]) -> str:
    with pytest.raises(AlignError) as failure:
        saved.prove(folder, model, trained)
    assert failure.value.exit == Exit.STAGE_FAILED
    assert failure.value.remedy == REMEDY.format(folder=folder)
    return failure.value.what.removeprefix("what was saved is not what was trained: ")


@pytest.mark.parametrize(
    ("config", "trained"),
    [
        (LoraConfig(**LORA), 4),
        (LoraConfig(**LORA, use_dora=True, bias="lora_only"), 6),
        (LoraConfig(**LORA, modules_to_save=["norm"]), 7),
        (LoraConfig(**LORA, trainable_token_indices=[3, 4]), 5),
        (TrainableTokensConfig(token_indices=[1, 2], task_type="CAUSAL_LM"), 1),
        (VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"), 2),
        (VBLoRAConfig(r=2, vector_length=8, num_vectors=4, target_modules=["q_proj"], task_type="CAUSAL_LM"), 3),
        (PromptTuningConfig(**PROMPT), 1),
        (PrefixTuningConfig(**PROMPT, prefix_projection=True, encoder_hidden_size=8), 5),
        (PromptEncoderConfig(**PROMPT, encoder_hidden_size=8), 7),
    ],
    ids=["lora", "dora", "modules", "tokens_beside", "tokens", "vera", "vblora", "prompt", "prefix", "p_tuning"],
)
def test_an_adapter_as_peft_writes_it(config: Any, trained: int, tmp_path: Path) -> None:
    model = adapted(config)
    model.save_pretrained(tmp_path)
    digests = weights.trained(model)
    found = saved.prove(tmp_path, model, digests)
    file = load_file(tmp_path / "adapter_model.safetensors")
    assert (found.trained, found.tensors) == (trained, len(file))
    assert found.numbers == sum(tensor.numel() for tensor in file.values())
    assert found.bytes == (tmp_path / "adapter_model.safetensors").stat().st_size

    other = adapted(config, seed=1)  # a file of other weights
    assert "'" in refused(tmp_path, other, weights.trained(other))


def fewer(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(file.items())[1:])


def swapped(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Two tensors of one shape, each under the other's name."""
    first, second = (name for name in file if "lora_A" in name)
    return {**file, first: file[second], second: file[first]}


def reshaped(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.t().contiguous() for name, tensor in file.items()}


def rounded(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.bfloat16() for name, tensor in file.items()}


def partitioned(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As each process of ZeRO-3 holds them."""
    return {name: torch.empty(0) for name in file}


MISSING = "of 4 trained tensors are not there; the files hold"
OTHER = "float32 [2, 16] with hash * in memory and"
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A"


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda file: {}, f"'{Q}.default.weight' and 3 more {MISSING} 0 tensors"),
        (fewer, f"'{Q}.default.weight' {MISSING} 3 tensors"),
        (swapped, f"'{Q}.default.weight' is {OTHER} float32 [2, 16] with hash * in the file"),
        (reshaped, f"'{Q}.default.weight' is {OTHER} float32 [16, 2] with hash * in the file"),
        (rounded, f"'{Q}.default.weight' is {OTHER} bfloat16 [2, 16] with hash * in the file"),
        (partitioned, f"'{Q}.weight' was saved without a number in it"),
    ],
    ids=["header", "fewer", "swapped", "reshaped", "rounded", "partitioned"],
)
def test_a_file_of_something_else_fails(
    plant: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], said: str, tmp_path: Path
) -> None:
    model = adapted(LoraConfig(**LORA))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file(plant(load_file(path)), path, metadata={"format": "pt"})
    what = refused(tmp_path, model, weights.trained(model))
    words = [word if len(word) != 8 or not set(word) <= set("0123456789abcdef") else "*" for word in what.split(" ")]
    assert " ".join(words) == said
    if not load_file(path):
        assert path.stat().st_size <= 48, "the known failure: a header, and nothing after it"


def test_a_file_that_was_cut_off_or_is_gone_fails(tmp_path: Path) -> None:
    model = adapted(LoraConfig(**LORA))
    model.save_pretrained(tmp_path)
    path, digests = tmp_path / "adapter_model.safetensors", weights.trained(model)
    os.truncate(path, path.stat().st_size - 1)
    what = refused(tmp_path, model, digests)
    assert what.startswith("adapter_model.safetensors cannot be read again (")
    path.unlink()
    assert refused(tmp_path, model, digests) == NO_FILE


def some_layers(model: PreTrainedModel) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    return model


def test_full_weights_and_some_of_them(tmp_path: Path) -> None:
    model = models.tiny_llama()
    model.save_pretrained(tmp_path)
    assert saved.prove(tmp_path, model, weights.trained(model)).trained == len(list(model.parameters()))
    some_layers(model)
    found = saved.prove(tmp_path, model, weights.trained(model))
    assert found.trained == 3 < found.tensors
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] += 1e-7
    assert refused(tmp_path, model, weights.trained(model)).startswith("'model.layers.0.mlp.up_proj.weight' is float32")


def test_weights_in_several_files(tmp_path: Path) -> None:
    model = models.tiny_llama()
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    found = saved.prove(tmp_path, model, weights.trained(model))
    assert found.bytes == sum(file.stat().st_size for file in files)
    index = tmp_path / "model.safetensors.index.json"
    named = json.loads(index.read_text())
    named["weight_map"]["extra"] = "model-9.safetensors"
    index.write_text(json.dumps(named))
    said = "model.safetensors.index.json names model-9.safetensors, which is not there"
    assert refused(tmp_path, model, weights.trained(model)) == said


def test_weights_under_frozen_adapters(tmp_path: Path) -> None:
    """A stage that trains base weights under adapters that stay saves them by the names that the base has."""
    model: Any = adapted(LoraConfig(**LORA))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" not in name)
    inner = stack.bare(model)
    inner.save_pretrained(tmp_path, state_dict=stack.base_weights(inner))
    assert "model.layers.0.self_attn.q_proj.weight" in load_file(tmp_path / "model.safetensors")
    assert saved.prove(tmp_path, inner, weights.trained(inner)).trained == len(list(models.tiny_llama().parameters()))


@pytest.mark.parametrize(("kind", "more"), [("mixtral", {"num_local_experts": 4}), ("qwen3_moe", {"num_experts": 4})])
def test_experts_that_are_one_tensor_in_memory_and_many_in_the_file(kind: str, more: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"moe_intermediate_size": 8, "num_key_value_heads": 2, "vocab_size": 40, "num_experts_per_tok": 2, **more}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    experts = [name for name, parameter in model.named_parameters() if parameter.ndim == 3]
    model.save_pretrained(tmp_path)
    assert experts and not set(experts) & set(load_file(tmp_path / "model.safetensors"))
    found = saved.prove(tmp_path, model, weights.trained(model))
    assert found.numbers == sum(parameter.numel() for parameter in model.parameters())
    for name in experts:
        kept = model.get_parameter(name).data.clone()
        model.get_parameter(name).data[2, 1, 3] += 1
        said = f"'{name}' of {found.trained:,} trained tensors are not there; the files hold {found.tensors:,} tensors"
        assert refused(tmp_path, model, weights.trained(model)) == said
        model.get_parameter(name).data.copy_(kept)


@pytest.mark.parametrize(("kind", "name"), [("olmo_hybrid", "linear_attn.conv1d"), ("hrm_text", "self_attn.q_proj")])
def test_weights_that_are_written_in_another_form(kind: str, name: str, tmp_path: Path) -> None:
    """Of three kernels that are one in memory, and of projections that are one in the file."""
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 40, "pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    model.save_pretrained(tmp_path)
    digests = weights.trained(model)
    assert saved.prove(tmp_path, model, digests).trained == len(digests) > 20
    weight = next(parameter for known, parameter in model.named_parameters() if known.endswith(f"{name}.weight"))
    weight.data[1] += 1
    assert "trained tensors are not there; the files hold" in refused(tmp_path, model, weights.trained(model))


def test_a_hash_is_of_bytes_shape_and_type() -> None:
    values = torch.arange(6.0)
    assert digest(values) != digest(values.reshape(2, 3)) and digest(values) != digest(values.bfloat16())
    assert digest(values).sha256 == digest(values.reshape(2, 3)).sha256
    assert digest(torch.tensor(-0.0)) != digest(torch.tensor(0.0)), "bit by bit"
    assert digest(values.reshape(2, 3).t()) == digest(values.reshape(2, 3).t().contiguous())


def test_parts_of_a_parameter_are_gathered() -> None:
    """Of FSDP2 as a DTensor says it, of ZeRO-3 by DeepSpeed's own context, within which the tensor is whole."""
    whole = torch.arange(6.0)
    model = torch.nn.Module()
    model.sharded = torch.nn.Parameter(whole[:3].clone())
    model.sharded.full_tensor = lambda: whole  # type: ignore[union-attr]
    model.partitioned = torch.nn.Parameter(torch.empty(0))
    model.partitioned.ds_id = 7  # type: ignore[union-attr]

    class Gathered:
        def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
            (self.parameter,) = parameters

        def __enter__(self) -> None:
            self.parameter.data = whole.clone()

        def __exit__(self, *_: object) -> None:
            self.parameter.data = torch.empty(0)

    deepspeed = SimpleNamespace(zero=SimpleNamespace(GatheredParameters=Gathered))
    with mock.patch.dict("sys.modules", {"deepspeed": deepspeed}):
        found = weights.trained(model)
    assert found == {"sharded": digest(whole), "partitioned": digest(whole)}
    assert model.partitioned.numel() == 0, "and let go again"


# ---- processes ------------------------------------------------------------------------------------------------------

WORLD = SimpleNamespace(num_processes=3)


def trained_by(*numbers: float) -> dict[str, Digest]:
    return {f"weight_{place}": digest(torch.tensor([number])) for place, number in enumerate(numbers)}


def among(*processes: dict[str, Digest]) -> RanksAgree | None:
    """`agree` as the first of several processes that have these."""
    rows = [[(name, one.sha256) for name, one in digests.items()] for digests in processes]

    def every(own: Any, world: Any) -> Any:
        assert own == rows[0]
        return rows

    with mock.patch.object(weights, "every", every):
        return weights.agree(processes[0], WORLD)


def test_processes_with_the_same_weights_agree() -> None:
    found = among(trained_by(1, 2), trained_by(1, 2), trained_by(1, 2))
    assert found is not None
    assert (found.processes, found.tensors, len(found.sha256)) == (3, 2, 64)
    assert weights.agree(trained_by(1, 2), SimpleNamespace(num_processes=1)) is None


OTHER_NAMES = "the processes do not train weights of the same names"


@pytest.mark.parametrize(
    ("third", "how"),
    [
        (trained_by(1, 2.5, 3), "1 of 3 trained tensors differ between processes, first 'weight_1' in process 2"),
        (trained_by(0, 0, 0), "3 of 3 trained tensors differ between processes, first 'weight_0' in process 2"),
        ({f"x{name}": one for name, one in trained_by(1, 2, 3).items()}, OTHER_NAMES),
        (trained_by(1, 2), OTHER_NAMES),
    ],
)
def test_a_process_with_other_weights_fails(third: dict[str, Digest], how: str) -> None:
    with pytest.raises(AlignError) as failure:
        among(trained_by(1, 2, 3), trained_by(1, 2, 3), third)
    more = "" if how == OTHER_NAMES else " from that in process 0"
    assert failure.value.what == f"training ended with different weights in different processes: {how}{more}"
    assert (failure.value.remedy, failure.value.exit) == (APART, Exit.STAGE_FAILED)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_saved_as_it_was_trained(name: str, tmp_path: Path) -> None:
    """As a stage makes and saves it, with weights that are all their own."""
    method = methods.load(name.partition("-")[0])
    settings = method.Keys.model_validate(models.settings(name.partition("-")[0], **keys(name)))
    quantization, trains_base = method.quantization(settings), method.traits(settings).trains_base
    model = load.load_weights(str(MODEL_DIR), {}, torch.float32, quantization)
    model = method.apply(model, settings, stack.TRAINED, tmp_path)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) / 100
    model.save_pretrained(tmp_path / "model", **({} if trains_base else {"selected_adapters": [stack.TRAINED]}))
    digests = weights.trained(model)
    assert saved.prove(tmp_path / "model", model, digests).trained > 0
    changed = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    changed.data += 1
    refused(tmp_path / "model", model, weights.trained(model))
