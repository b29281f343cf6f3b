"""Base models in memory: the tokenizer, the weights, the device and the precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.errors import AlignError, Exit
from align.policy import base, score_head
from align.policy.base import heads, replaced_tokens
from align.policy.score_head import SCORE
from align.run_folder.records import Gives


def device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    from accelerate import PartialState

    return PartialState().device if torch.cuda.is_available() else torch.device("cpu")


def native_bf16() -> bool:
    """Whether bfloat16 arithmetic is faster here than float32: a GPU that has it, or a CPU with AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capability = torch.backends.cpu.get_cpu_capability()
    cpu = torch.cpu
    return "AVX512" in capability and bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def load_tokenizer(folder: str, chat_template: str | None, keys: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with a padding token.

    Args:
        chat_template: the text of the recipe's own; None keeps the base's.
        keys: the recipe's `model`, which may name other special tokens.
    """
    code = bool(keys.get("trust_remote_code"))
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=code)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    for name, token in replaced_tokens(keys).items():
        setattr(tokenizer, name, token)
    if tokenizer.eos_token is None:
        raise AlignError("the tokenizer of the base has no end token", "name one of its tokens with `model.eos_token`")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(
    folder: str,
    keys: dict[str, Any],
    dtype: torch.dtype,
    quantization: dict[str, Any] | None,
    gives: Gives = "policy",
) -> PreTrainedModel:
    """A model from a folder, on this process's device, in evaluation mode.

    Args:
        keys: the recipe's `model`.
        quantization: arguments of BitsAndBytesConfig; of a base that is saved in 4 or 8 bits only the compute dtype
            acts, and None holds it as it is saved.
        gives: a causal language model, or one with a head `score` that gives one number; a new head draws from torch's
            random state.

    Raises:
        AlignError: bitsandbytes is missing, or transformers refuses the model.
    """
    scores = gives == "reward"
    kind, labels = (AutoModelForSequenceClassification, {"num_labels": 1}) if scores else (AutoModelForCausalLM, {})
    code = bool(keys.get("trust_remote_code"))
    held = _held(folder, quantization, labels, trust_remote_code=code)
    packed = "config" in held or "quantization_config" in held
    try:
        model: PreTrainedModel = kind.from_pretrained(
            folder,
            **held,
            dtype=dtype,
            attn_implementation=keys.get("attn_implementation"),
            trust_remote_code=code,
            use_safetensors=True,
            device_map={"": device()} if packed or torch.cuda.is_available() else None,
        )
    except ImportError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "ImportError"
        remedy = "pip install bitsandbytes" if packed else "install the package that is named, or choose another"
        raise AlignError(f"the model cannot be loaded: {reason}", remedy, exit=Exit.MACHINE) from error
    except ValueError as error:
        raise AlignError(
            f"transformers refuses the model: {error}", "see the line above", exit=Exit.BAD_INPUT
        ) from error
    pin_4bit_layout(model)
    _check_4bit_rows(model)
    if scores:
        score_head.prepare(model, Path(folder))
    return model.eval()


def _held(
    folder: str, quantization: dict[str, Any] | None, labels: dict[str, int], *, trust_remote_code: bool
) -> dict[str, Any]:
    """What `from_pretrained` is told of how bitsandbytes holds the weights, and of the model's labels.

    A base that is saved in 4 or 8 bits is told by its own config. An argument `quantization_config` could change
    nothing of that, and one of None would put out what the config says: transformers would load codes as weights.
    """
    skipped = [SCORE] if labels else []
    saved = base.quantization(PretrainedConfig.get_config_dict(folder)[0])
    if saved is None:
        more = {"llm_int8_skip_modules": skipped} if skipped else {}
        asked = BitsAndBytesConfig(**quantization, **more) if quantization else None
        return {**labels, **({"quantization_config": asked} if asked else {})}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **labels)
    computed = "bnb_4bit_compute_dtype"
    asked_for = {computed: quantization[computed]} if computed in (quantization or {}) and quantization else {}
    left = [*(saved.get("llm_int8_skip_modules") or []), *skipped]
    config.quantization_config = saved | asked_for | {"llm_int8_skip_modules": left or None}
    return {"config": config}


def _check_4bit_rows(model: torch.nn.Module) -> None:
    """Raises AlignError where 4-bit weights cannot be trusted.

    On a CPU bitsandbytes 0.50 unpacks a matrix whose rows are not whole blocks wrongly, by up to a third of its largest
    weight, and says nothing; tests/test_nf4.py.
    """
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None or module.weight.device.type != "cpu":
            continue
        if state.shape[-1] % state.blocksize:
            what = f"on a CPU bitsandbytes unpacks 4-bit rows of {state.shape[-1]} weights wrongly ({name})"
            remedy = f"use lora here, or qlora on a GPU; rows of a multiple of {state.blocksize} weights are right"
            raise AlignError(what, remedy, exit=Exit.MACHINE)


def pin_4bit_layout(model: torch.nn.Module) -> None:
    """Keep 4-bit weights in the layout that has a gradient.

    On a CPU with AVX512-BF16, bitsandbytes repacks each Linear4bit at its first evaluation forward for a kernel
    without autograd; from then on gradients through it are wrong, silently, while the loss stays right.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # torch's types take every attribute of a module for a tensor
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def dequantized(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with float weights in place of those in 4 or 8 bits.

    What transformers did to read a file of packed weights it would undo when it writes one, which is impossible for
    weights that are packed no more.
    """
    model = model.dequantize(dtype)
    conversions = getattr(model, "_weight_conversions", None) or []
    of_quantizer = [any(hasattr(op, "hf_quantizer") for op in getattr(one, "operations", [])) for one in conversions]
    if any(of_quantizer):
        vars(model)["_weight_conversions"] = [
            one for one, packed in zip(conversions, of_quantizer, strict=True) if not packed
        ]
    return model


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights in another precision. Buffers stay: rotary frequencies are kept in float32, and
    rounded they turn positions."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def precision_of(folder: Path) -> torch.dtype:
    """That of the largest tensor of a model's files; bfloat16 where it is held in fewer bits."""
    tensors = (entry for name, entry in heads(folder) if name != "__metadata__")
    largest = max(tensors, key=lambda entry: entry["data_offsets"][1] - entry["data_offsets"][0])
    return {"F32": torch.float32, "F16": torch.float16}.get(largest["dtype"], torch.bfloat16)


def vocabulary(model: PreTrainedModel) -> int:
    """Tokens that a model has an embedding for, padding of the matrix included."""
    return int(model.get_input_embeddings().weight.size(0))


def counts(model: torch.nn.Module) -> dict[str, int]:
    """Numbers of parameters: all of them, and those that train. A 4-bit tensor counts its weights, not its bytes."""
    total = trainable = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return {"total": total, "trainable": trainable}


def dtype_of(name: str, trains_base: bool) -> torch.dtype:
    """`auto`: float32 where base weights are trained (small updates round away in bfloat16), else bfloat16."""
    if name == "auto":
        return torch.float32 if trains_base else torch.bfloat16
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
