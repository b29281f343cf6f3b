"""With how many layers a stage is traced, so that the memory of the whole model follows. No torch."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from align.recipe.plan import StagePlan

WHOLE = 6  # layers; a model of no more is traced as it is
_SHARES = 8  # the largest denominator of a share of layers that are trained


_PATTERNS = (
    *("sliding_window_pattern", "full_attention_interval", "attn_layer_period", "layers_block_type"),
    *("hybrid_override_pattern", "attn_layer_indices", "decoder_sparse_step", "mlp_only_layers"),
)


def _text(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that is about the language model."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def layers(config: dict[str, Any]) -> int | None:
    """Of a base, by its config.json; None where it does not say."""
    for part in (_text(config), config):
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            if isinstance(part.get(name), int):
                return int(part[name])
    return None


def of(plan: StagePlan, config: dict[str, Any]) -> tuple[int, ...]:
    """One depth, or two that lie on the line on which the memory of every phase grows with the depth.

    What a phase takes at its peak is a part for the ends of the model and one for each layer. Layers of several kinds
    come in periods, and Spectrum trains a share of them: depths are multiples of both.
    """
    count = layers(config)
    assert count is not None
    if count <= WHOLE or _names_layers(plan):
        return (count,)
    first = _dense(config)
    step = _period(config, count) * _denominator(plan)
    step = step if step > 1 else 2
    pair = (first + step, first + 2 * step)
    return pair if pair[1] < count and (count - first) % _period(config, count) == 0 else (count,)


def _names_layers(plan: StagePlan) -> bool:
    """Whether the parameterization names the layers that it is put on."""
    settings = plan.method_keys.model_dump(mode="json")
    parts = [one for one in settings.values() if isinstance(one, dict)]
    chosen = [part.get(name) for part in parts for name in ("layers_to_transform", "layers_to_finetune", "layers")]
    return any(isinstance(one, list | int) for one in chosen)


def _denominator(plan: StagePlan) -> int:
    keys = plan.method_keys.model_dump(mode="json").get("spectrum")
    share = keys.get("snr_threshold") if isinstance(keys, dict) else None
    return 1 if share is None else Fraction(1 - share).limit_denominator(_SHARES).denominator


def _period(config: dict[str, Any], count: int) -> int:
    """After how many layers their kinds repeat."""
    kinds = _text(config).get("layer_types")
    if kinds is None and any(_text(config).get(name) not in (None, 0, 1, []) for name in _PATTERNS):
        return count  # of a kind that the config does not list
    if not isinstance(kinds, list) or len(kinds) != count:
        return 1
    return next(size for size in range(1, count + 1) if all(kinds[i] == kinds[i - size] for i in range(size, count)))


def _dense(config: dict[str, Any]) -> int:
    """Layers at the beginning that are of another kind than all others."""
    found = _text(config).get("first_k_dense_replace")
    return found if isinstance(found, int) else 0
