"""The memory of a stage by a formula, where it cannot be traced: it knows no order of events, and is never exact.

Weights, what the optimizer keeps of those that are trained and their gradients; of each layer the hidden states that
are kept, or its inner ones where nothing is checkpointed; the logits of one batch, four times, as cross entropy holds
them. Counted from the shapes in the files of the base.
"""

from __future__ import annotations

from math import prod

from align.planning.records import Memory, Part
from align.planning.target import Target
from align.policy.base import Base, heads
from align.recipe.plan import StagePlan

INNER = (
    16  # hidden states' worth that a layer keeps for its backward pass; attention and a gated MLP at its usual width
)
NF4, EIGHT_BITS = 4.13 / 8, 1.0  # bytes of a weight, with double quantisation and in eight bits


def memory(plan: StagePlan, base: Base, longest: int, target: Target) -> Memory | None:
    """None where the files of the base do not tell enough, and of a stage that samples answers, which holds more models
    than its own."""
    if plan.program.stage.samples:
        return None
    text = base.config.get("text_config")
    config = text if isinstance(text, dict) else base.config
    width, layers, words = (config.get(name) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    shapes = [entry["shape"] for name, entry in heads(base.path) if name != "__metadata__"] if base.path else []
    if not (isinstance(width, int) and isinstance(layers, int) and isinstance(words, int) and shapes and longest):
        return None
    total = sum(prod(shape) for shape in shapes)
    full, quantized = plan.trains_base, plan.layer.quantized
    rank = (plan.method_keys.model_dump(mode="json").get("lora") or {}).get("r", 16)
    trained = total if full else sum(rank * sum(shape) for shape in shapes if len(shape) == 2)
    kept = 4 if full else 2
    bits = (plan.method_keys.model_dump(mode="json").get("quantization") or {}).get("bits")
    packed = EIGHT_BITS if bits == 8 else NF4
    weights = total * (packed if quantized else kept) + (0 if full else 4 * trained)
    pairs = 2 if "preference" in plan.program.stage.rows else 1
    tokens = plan.global_batch[0] * longest * pairs
    checkpointed = plan.training.get("gradient_checkpointing", target.gpu and plan.layer.traits.recomputes)
    inner = INNER * tokens * width * (2 if target.gpu else kept)
    activations = (layers * tokens * width * 2 + inner) if checkpointed else layers * inner
    logits = 0 if plan.program.stage.gives == "reward" else 4 * tokens * words * 4
    found: dict[Part, float] = {
        "weights": weights,
        "optimizer": 8 * trained,
        "gradients": 4 * trained,
        "activations": activations,
        "logits": logits,
    }
    parts = {part: round(size) for part, size in found.items()}
    return Memory(peak=sum(parts.values()), parts=parts, phase="a step")
