"""A base from its config alone, with as many layers as are asked for, and its weights held as a stage holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.quantizers.auto import AutoHfQuantizer

from align.policy import load as models
from align.policy import score_head
from align.run_folder.records import Gives

_COUNT = "num_hidden_layers"


def at_depth(config: PretrainedConfig, depth: int) -> PretrainedConfig:
    """The config of the same model with fewer layers; lists with an entry for each layer are cut too."""
    for part in {id(one): one for one in (config, config.get_text_config(decoder=True))}.values():
        layers = getattr(part, _COUNT, None)
        if not isinstance(layers, int):
            continue
        setattr(part, _COUNT, depth)
        for name, value in list(vars(part).items()):
            if isinstance(value, list) and len(value) == layers:
                setattr(part, name, value[:depth])
    return config


def make(
    folder: Path,
    keys: dict[str, Any],
    dtype: torch.dtype,
    quantization: dict[str, Any] | None,
    gives: Gives,
    depth: int | None,
) -> PreTrainedModel:
    """As `policy.load.load_weights` loads it; made within a FakeTensorMode it has shapes and no content.

    Args:
        depth: layers; None for all.
    """
    code, scores = bool(keys.get("trust_remote_code")), gives == "reward"
    labels = {"num_labels": 1} if scores else {}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=code, **labels)
    vars(config).pop("quantization_config", None)  # of a base that is saved in 4 bits: it is packed below
    config = config if depth is None else at_depth(config, depth)
    attention = keys.get("attn_implementation")
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_config(
        config, dtype=dtype, trust_remote_code=code, attn_implementation=attention if attention == "eager" else None
    )
    if quantization:
        pack(model, quantization, dtype)
    if scores:
        head: Any = model.score
        model.score = score_head.Score(head.in_features, head.out_features, bias=head.bias is not None)
    return model.eval()


def pack(model: PreTrainedModel, asked: dict[str, Any], dtype: torch.dtype) -> None:
    """Put bitsandbytes' layers in place of the linear ones, the heads apart.

    Raises:
        NotImplementedError: eight bits, whose products have no meaning without content.
    """
    from bitsandbytes.nn import Linear4bit

    if asked.get("load_in_8bit"):
        raise NotImplementedError("products of 8-bit weights cannot be traced")
    heads = {id(model.get_output_embeddings()), id(getattr(model, score_head.SCORE, None))}
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or id(module) in heads:
            continue
        with unset_fake_temporarily(), torch.device("meta"):
            packed = Linear4bit(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                compute_dtype=getattr(torch, asked["bnb_4bit_compute_dtype"]),
                compress_statistics=asked["bnb_4bit_use_double_quant"],
                quant_type=asked["bnb_4bit_quant_type"],
            )
        packed.bias = module.bias
        packed._parameters["weight"] = _weight(module.weight, packed, asked, dtype)
        model.set_submodule(name, packed)
    marks: Any = model
    marks.is_loaded_in_4bit = marks.is_quantized = True
    marks.hf_quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(**asked))
    marks.quantization_method = marks.hf_quantizer.quantization_config.quant_method
    models.pin_4bit_layout(model)
    model.requires_grad_(False)


def _weight(weight: torch.Tensor, module: Any, asked: dict[str, Any], dtype: torch.dtype) -> nn.Parameter:
    """Codes, two to a byte; a scale for each block of 64, which double quantisation holds in 8 bits."""
    from bitsandbytes.functional import QuantState

    count, size = weight.numel(), 64
    blocks = -(-count // size)
    code, nested = torch.empty(16), None
    scales = torch.empty(blocks)
    if asked["bnb_4bit_use_double_quant"]:
        scales = torch.empty(blocks, dtype=torch.uint8)
        nested = QuantState(torch.empty(-(-blocks // 256)), blocksize=256, code=torch.empty(256), dtype=torch.float32)
    state = QuantState(
        scales,
        shape=weight.shape,
        code=code,
        blocksize=size,
        quant_type=asked["bnb_4bit_quant_type"],
        dtype=dtype,
        offset=torch.empty(()) if nested is not None else None,
        state2=nested,
    )
    packed = nn.Parameter(torch.empty(-(-count // 2), 1, dtype=torch.uint8), requires_grad=False)
    marks: Any = packed
    marks.quant_state, marks.quant_type, marks.blocksize = state, asked["bnb_4bit_quant_type"], size
    marks.compress_statistics, marks.bnb_quantized = asked["bnb_4bit_use_double_quant"], True
    module.quant_state = state
    return packed
