"""Models in memory: load a base, put a policy on it, hand it over to the next stage, save it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.errors import AlignError, Exit
from align.stage import Policy

if TYPE_CHECKING:
    from peft import PeftModel

TRAINED = "default"  # PEFT's name of the adapter that this stage trains; earlier ones are named for their stage
AGREEMENT_FLOOR = 0.98


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


def load_tokenizer(
    folder: str, chat_template: str | None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with a padding token.

    Args:
        chat_template: the text of the recipe's own; None keeps the base's.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if tokenizer.eos_token is None:
        raise AlignError("the tokenizer of the base has no end token", "set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(
    folder: str, keys: dict[str, Any], dtype: torch.dtype, quantization: dict[str, Any] | None
) -> PreTrainedModel:
    """A causal language model from a folder, on this process's device, in evaluation mode.

    Args:
        keys: the recipe's `model`.
        quantization: arguments of BitsAndBytesConfig.

    Raises:
        AlignError: bitsandbytes is missing, or transformers refuses the model.
    """
    config = BitsAndBytesConfig(**quantization) if quantization else None
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=config,
            attn_implementation=keys.get("attn_implementation"),
            trust_remote_code=bool(keys.get("trust_remote_code")),
            use_safetensors=True,
            device_map={"": device()} if quantization or torch.cuda.is_available() else None,
        )
    except ImportError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "ImportError"
        remedy = "pip install bitsandbytes" if quantization else "install the package that is named, or choose another"
        raise AlignError(f"the model cannot be loaded: {reason}", remedy, exit=Exit.MACHINE) from error
    except ValueError as error:
        raise AlignError(
            f"transformers refuses the model: {error}", "see the line above", exit=Exit.BAD_INPUT
        ) from error
    pin_4bit_layout(model)
    return model.eval()


def pin_4bit_layout(model: torch.nn.Module) -> None:
    """Keep 4-bit weights in the layout that has a gradient.

    On a CPU with AVX512-BF16, bitsandbytes repacks each Linear4bit at its first evaluation forward for a kernel
    without autograd; from then on gradients through it are wrong, silently, while the loss stays right.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def adapter_names(policy: Policy) -> list[str]:
    """PEFT's names of a policy's adapters. A stage may be called `train` or `default`, which PEFT cannot take."""
    return [f"stage_{adapter.name}" for adapter in policy.adapters]


def put_adapters(model: PreTrainedModel, policy: Policy, run: Path, *, last: str | None = None) -> PreTrainedModel:
    """Load a policy's adapters onto its base, in order, all active and frozen.

    Args:
        run: the run folder, which the adapters' paths are relative to.
        last: the PEFT name of the last adapter; by default its own.
    """
    from peft import PeftModel

    names = adapter_names(policy)
    if last is not None and names:
        names[-1] = last
    for name, adapter in zip(names, policy.adapters, strict=True):
        folder = str(run / adapter.path)
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=True)
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name, autocast_adapter_dtype=True)
    if isinstance(model, PeftModel):
        activate(model, names, trainable=None)
    return model


def load_policy(policy: Policy, keys: dict[str, Any], run: Path) -> PreTrainedModel:
    """A policy as it stands in a run folder, in evaluation mode, its adapters active.

    Args:
        keys: the recipe's `model`.
    """
    dtype = dtype_of(keys.get("dtype", "auto"), trains_base=policy.weights is not None)
    folder = str(run / policy.weights) if policy.weights else policy.base.path
    return put_adapters(load_weights(folder, keys, dtype, policy.quantization), policy, run).eval()


def activate(model: PeftModel, names: list[str], *, trainable: str | None) -> None:
    """Make these adapters act together, in order; only `trainable` learns.

    PEFT makes every active adapter trainable, so the flags are set again afterwards.
    """
    model.base_model.set_adapter(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable is not None and f".{trainable}." in name)


@dataclass(frozen=True)
class Merge:
    """What a merge into base weights did: how often the merged model's next token is that of the adapted one."""

    adapters: list[str]
    agreement: float
    prompts: int


@torch.no_grad()
def merge(base: PreTrainedModel, policy: Policy, run: Path, prompts: list[list[int]]) -> tuple[PreTrainedModel, Merge]:
    """Merge a policy's adapters into its base's own precision, through the dequantised base.

    Merging onto 4-bit weights and quantising again would lose most of the update.

    Args:
        base: as the policy holds it, quantised where it was trained so; it is used up.
        run: the run folder, which the adapters' paths are relative to.
        prompts: token ids to compare the two on.

    Raises:
        AlignError: the merged model disagrees with the adapted one.
    """
    model = put_adapters(base, policy, run)
    before = [_next_tokens(model, ids) for ids in prompts]
    if getattr(base, "is_loaded_in_4bit", False) or getattr(base, "is_loaded_in_8bit", False):
        # the adapters' layers are made for the kind of layer below them, so they are put on again
        model = put_adapters(model.unload().dequantize(), policy, run)
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True, adapter_names=adapter_names(policy))
    after = [_next_tokens(merged, ids) for ids in prompts]
    total = sum(len(tokens) for tokens in before)
    same = sum(int((a == b).sum()) for a, b in zip(before, after, strict=True))
    result = Merge([adapter.name for adapter in policy.adapters], same / max(total, 1), len(prompts))
    if result.agreement < AGREEMENT_FLOOR:
        raise AlignError(
            f"the merged model picks the adapted model's next token in only {result.agreement:.1%} of "
            f"{total} positions (at least {AGREEMENT_FLOOR:.0%} is needed)",
            "use `dtype: float32`, or keep the adapter with a parameterization that freezes the base",
            exit=Exit.STAGE_FAILED,
        )
    return merged, result


def _next_tokens(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=device())).logits
    return logits[0].argmax(-1).cpu()


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
