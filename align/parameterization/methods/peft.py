"""Every method of PEFT that has no file of its own, by PEFT's name in lower case and with PEFT's settings."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationInfo, field_validator

from align import errors
from align.errors import one_of, shown
from align.libraries import peft as peft_source
from align.parameterization.methods.qlora import QuantizationKeys
from align.parameterization.traits import NOT_LINEAR, Linear, ParameterizationKeys, Traits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DESCRIPTION = "any other PEFT method"
VIRTUAL_TOKENS = 20
# What a recipe cannot give them.
REFUSED = {
    "adaption_prompt": "it replaces the attention of old Llama code, which transformers no longer has",
    "cpt": "it needs the tokens of a prompt and their types",
    "multitask_prompt_tuning": "it needs a task id with every row",
    "p_tuning": "PEFT saves the output of its encoder but not the encoder, so training cannot be resumed",
    "poly": "it needs a task id with every row",
    "shadow": "it runs a second model alongside the first and produces two outputs instead of one",
    "trainable_tokens": "it trains embeddings, which TRL's trainers refuse if the head shares them",
    "xlora": "it needs adapters that are already trained",
}
_PACKAGES = {"adamss": ("sklearn", "scikit-learn")}  # what a method imports, and its distribution
_UNMERGEABLE = ("beft", "lily")  # and those that learn prompts
# On top of another adapter these compute with the base's own weight and leave out what is beneath, or do not find the
# layers that it wraps; tests/test_methods.py.
_ALONE = ("frod", "glora", "hra", "pvera", "shira", "supertuning", "tinylora", "vera")
_CACHED = ("prefix_tuning", "cartridge")  # stand in the key-value cache, which PEFT cannot recompute
_ANY_MODULE = ("ln_tuning", "beft")  # go on more than linear layers
_ONCE = ("ln_tuning", "osf")  # PEFT lets one of them act at a time
# What their updates are linear in; tests/test_interpolation_methods.py holds it against the merged weights.
_LINEAR = {
    "adalora": Linear(("lora_E",), further=None),
    "beft": Linear(("beft_bias",)),
    "c3a": Linear(("c3a_kernel",)),
    "fourierft": Linear(("fourierft_spectrum",)),
    "gralora": Linear(("gralora_B", "gralora_B_general"), further=None),
    "hira": Linear(("hira_B", "hira_embedding_B"), further=None),
    "ia3": Linear(),
    "ln_tuning": Linear(),
    "loha": Linear(("hada_w1_a",), further=None),
    "lokr": Linear(("lokr_w1", "lokr_w1_a"), further=None),
    "miss": Linear(("miss_block",)),
    "randlora": Linear(("randlora_lambda",), further=None),
    "shira": Linear(("shira_weight",)),
    "vera": Linear(("vera_lambda_b",), further=None),
    "waveft": Linear(("waveft_spectrum",)),
}
_PROMPTS = "it learns prompts, which stand before every row, and no update of weights"
_OWNED = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision")


class Keys(ParameterizationKeys):
    """`{method: ia3, peft: {...}}`"""

    method: str
    peft: dict[str, Any] = Field({}, validate_default=True, description="settings of the method, by PEFT's names")
    quantization: QuantizationKeys | None = Field(None, description="quantise the frozen base to 4 or 8 bits")

    @field_validator("method")
    @classmethod
    def _offered(cls, value: str) -> str:
        if value in _PACKAGES and not importlib.util.find_spec(_PACKAGES[value][0]):
            raise ValueError(f"PEFT's '{value}' needs a package: pip install {_PACKAGES[value][1]}")
        if value in REFUSED:
            raise ValueError(f"PEFT's '{value}' cannot be used here, since {REFUSED[value]}: choose another method")
        return value

    @field_validator("peft")
    @classmethod
    def _settings(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        method = info.data.get("method")
        if not isinstance(method, str):
            return value
        known = [name for name in peft_source.settings(method) if name not in (*_OWNED, "inference_mode")]
        unknown = next((name for name in value if name not in known), None)
        if unknown is not None:
            close = errors.nearest(unknown, known)
            way = f"did you mean '{close}'?" if close else f"choose from {', '.join(known)}"
            raise ValueError(f"PEFT's '{method}' has no setting '{unknown}': {way}")
        wrong = next((name for name, one in value.items() if not peft_source.settings(method)[name].fits(one)), None)
        if wrong is not None:
            words = one_of(peft_source.settings(method)[wrong].words)
            raise ValueError(f"{wrong!r} cannot be {shown(value[wrong])}: write {words}")
        if method == "adalora" and not 1 <= value.get("target_r", 8) <= value.get("init_r", 12):
            raise ValueError("AdaLoRA prunes from init_r (12) to target_r (8): write an init_r of at least target_r")
        if value.get("prefix_projection"):
            raise ValueError("PEFT does not save a prefix_projection, so training could not be resumed: leave it out")
        for name in ("target_modules", "layers_to_transform", "modules_to_save"):
            if value.get(name) in ([], ""):
                raise ValueError(f"{name!r} is empty: write at least one, or leave it out")
        tokens = value.get("num_virtual_tokens", 1)
        if not isinstance(tokens, int) or tokens < 1:
            raise ValueError(f"num_virtual_tokens cannot be {tokens!r}: write a whole number of at least 1")
        prompts = {"num_virtual_tokens": VIRTUAL_TOKENS} if learns_prompts(method) else {}
        return prompts | value

    @field_validator("quantization")
    @classmethod
    def _over_quantized(cls, value: QuantizationKeys | None, info: ValidationInfo) -> QuantizationKeys | None:
        method = info.data.get("method", "")
        if value is not None and method and not learns_prompts(method) and not peft_source.has_quantized(method):
            raise ValueError(
                f"PEFT's '{method}' does not support a quantised base: choose ia3, or leave `quantization` out"
            )
        return value


def learns_prompts(method: str) -> bool:
    """Whether it trains vectors that stand before every row, rather than layers."""
    return "num_virtual_tokens" in peft_source.settings(method)


def traits(keys: Keys) -> Traits:
    """Learnt prompts act in PEFT's model alone, of which there is one; AdaLoRA has shared out its ranks by its end."""
    prompts = learns_prompts(keys.method)
    return Traits(
        merges=not prompts and keys.method not in _UNMERGEABLE,
        continues=keys.method != "adalora",
        stacks=not prompts and not keys.peft.get("modules_to_save"),
        tops=keys.method not in _ALONE,
        repeats=keys.method not in _ONCE,
        inside=not prompts,
        recomputes=keys.method not in _CACHED,
        saves_modules=bool(keys.peft.get("modules_to_save")),
        any_module=keys.method in _ANY_MODULE,
        switches=keys.peft.get("bias") in (None, False, True, "none"),
        linear=_PROMPTS if prompts else _LINEAR.get(keys.method, NOT_LINEAR),
    )


def advise(keys: Keys) -> list[str]:
    """Nothing that is known of all methods."""
    return []


def quantization(keys: Keys) -> dict[str, Any] | None:
    """As asked for; in its own precision otherwise."""
    return keys.quantization.arguments() if keys.quantization else None


def apply(model: Any, keys: Keys, name: str, folder: Path | None = None) -> PreTrainedModel:
    """Add a trainable adapter called `name`; the weights of the base are frozen.

    Raises:
        AlignError: PEFT refuses the settings, or this model.
    """
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from align.policy import stack

    settings = {**_targets(model, keys.method), **keys.peft}
    if keys.method == "adalora":
        settings.setdefault("total_step", 10**9)  # the true number is set when training begins
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[keys.method.upper()]]
    with stack.refusal(keys.method):
        config = config_class(task_type="CAUSAL_LM", **settings)
    return stack.add(model, config, name)


def _targets(model: Any, method: str) -> dict[str, Any]:
    """The modules that a method goes on where the recipe names none."""
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_FAMILIES

    from align.policy import stack, targets

    if "target_modules" not in peft_source.settings(method) or method == "trainable_tokens":
        return {}
    base = stack.bare(model)
    if method == "ln_tuning":
        return {"target_modules": targets.norms(base)}
    if method == "ia3" and base.config.model_type in IA3_FAMILIES:
        return {}
    found: dict[str, Any] = {"target_modules": targets.find(base).modules}
    if method == "ia3":  # it scales what comes into the second layer of an MLP, and what comes out of others
        found["feedforward_modules"] = targets.narrowing(base)
    return found
