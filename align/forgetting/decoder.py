"""Which models can be driven pass by pass, beyond what every model of transformers takes."""

from __future__ import annotations

import inspect
from typing import Any

from align.policy.unwrapped import unwrapped

MASKED = ("sdpa", "eager")  # kinds of attention that take a mask of every token against every other


def ordinary(model: Any) -> bool:
    """Whether it is one of transformers' own decoders that is told positions, gives the logits of some of them alone,
    and remembers by its cache alone; and no learnt prompt stands before its input."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False
    inner = unwrapped(model)
    kind = type(inner)
    own = kind.__module__.startswith("transformers.models.") and kind.__name__.endswith(("ForCausalLM", "LMHeadModel"))
    accepted = inspect.signature(inner.forward).parameters
    return own and not inner._is_stateful and {"position_ids", "logits_to_keep"} <= set(accepted)


def window(model: Any) -> int | None:
    """How many tokens back some layer sees at most; None where all see all."""
    config = unwrapped(model).config.get_text_config()
    layers = getattr(config, "layer_types", None)
    slides = "sliding_attention" in layers if layers else getattr(config, "use_sliding_window", True)
    found = getattr(config, "sliding_window", None)
    return int(found) if slides and found else None


def masked(model: Any, longest: int) -> bool:
    """Whether it also looks at the tokens that a mask tells it, in every layer, and at no others.

    Args:
        longest: tokens of a row. Within a window, what a layer sees is what the mask tells.
    """
    if not ordinary(model):
        return False
    whole = unwrapped(model).config
    config = whole.get_text_config()
    known = set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
    biased = getattr(config, "alibi", False)  # by the place in the input rather than by the position
    return bool(known and not biased and longest <= (window(model) or longest) and whole._attn_implementation in MASKED)
