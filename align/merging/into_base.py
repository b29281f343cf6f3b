"""Adapters become part of base weights, and the merged model is held against the adapted one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from align.errors import AlignError, Exit
from align.merging import fidelity
from align.merging.dither import dithered
from align.merging.fidelity import Text
from align.merging.verdict import Merge
from align.policy import load as models
from align.policy import score_head
from align.policy import stack as put_on
from align.run_folder.records import Adapter

ROWS = 16  # of a stage, on which the merged model is held against the adapted one


@torch.no_grad()
def merge(
    base: PreTrainedModel, adapters: Sequence[Adapter], run: Path, prompts: list[list[int]], dtype: torch.dtype
) -> tuple[PreTrainedModel, Merge]:
    """Merge adapters, one after the other, in float32 and through the dequantised base.

    Merging onto 4-bit weights and quantising again would lose most of the update; merging in bfloat16 loses some. Base,
    adapted and merged model are one set of weights, one after the other: no second one is held.

    Args:
        base: as the policy holds it, quantised where it was trained so; it is used up.
        run: the run folder, which the adapters' paths are relative to.
        prompts: token ids to compare the two on.
        dtype: of the merged weights.

    Raises:
        AlignError: the merged model is not the adapted one.
    """
    text = fidelity.Text.of(base, prompts)
    base = _unpacked(base)  # products in 8 bits round what goes in, and no merge into floats can
    if score_head.has(base):
        _take_head(base, adapters, run)
    plain, own = _of_base(base, text, dtype)
    model = put_on.put(base, adapters, run).eval()
    adapted = fidelity.read(model, text)
    own["moved_kl"] = fidelity.divergence(adapted, plain)
    del plain
    whole = merged(put_on.strip(model), adapters, run, dtype).eval()
    fidelity.compute_in(whole, torch.float32)  # its weights are rounded already
    after = fidelity.read(whole, text)
    policy = not score_head.has(whole)
    result = Merge(
        adapters=[adapter.name for adapter in adapters],
        dtype=str(dtype).removeprefix("torch."),
        rows=len(text.rows),
        positions=adapted.size(0),
        kl=fidelity.divergence(adapted, after),
        loss=fidelity.loss(adapted, text) if policy else None,
        merged_loss=fidelity.loss(after, text) if policy else None,
        agreement=fidelity.agreement(adapted, after) if policy else None,
        **own,
    )
    _check(result)
    return cast(whole, dtype), result


def _of_base(base: PreTrainedModel, text: Text, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, Any]]:
    """What the base finds in float32, which it is in from here on, and what the precision costs it."""
    fidelity.compute_in(base, torch.float32)
    plain = narrow = fidelity.read(base, text)
    if dtype != torch.float32:
        with fidelity.rounded(base, dtype):
            narrow = fidelity.read(base, text)
    if not narrow.isfinite().all():
        what = f"in {str(dtype).removeprefix('torch.')} the base itself produces NaN or infinite values"
        raise AlignError(what, "use a different dtype", exit=Exit.STAGE_FAILED)
    own: dict[str, Any] = {"precision_kl": fidelity.divergence(plain, narrow)}
    if score_head.has(base):
        return plain, {**own, "precision_loss": None, "base_loss": None}
    losses = [fidelity.loss(one, text) for one in (plain, narrow)]
    return plain, {**own, "precision_loss": abs(losses[1] - losses[0]), "base_loss": losses[0]}


def merged(base: PreTrainedModel, adapters: Sequence[Adapter], run: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A bare base with adapters added to its weights, one after the other, in float32, and then rounded.

    An adapter of the embedding alone leaves a head that shares its weights as it was: they are untied.
    """
    base = models.cast(_unpacked(base), torch.float32)
    held = _held_by(base, dtype)
    tied, untied = getattr(base.config, "tie_word_embeddings", None), False
    for adapter in adapters:
        folder = str(run / adapter.path)
        config = put_on.fitting(PeftConfig.from_pretrained(folder), base)
        one = PeftModel.from_pretrained(put_on.bare(base), folder, config=config, autocast_adapter_dtype=True)
        untied |= _untie(put_on.bare(one))
        base = one.merge_and_unload(safe_merge=True)
        if tied is not None:
            base.config.tie_word_embeddings = tied  # the next adapter is put on as it was in training
    if untied:
        _tie_again_or_never(base)
    return _round(put_on.bare(base), dtype, held)


def _unpacked(base: PreTrainedModel) -> PreTrainedModel:
    """A base with floats in place of weights in 4 or 8 bits; transformers takes its quantizer off it then."""
    return base if getattr(base, "hf_quantizer", None) is None else models.dequantized(base, torch.float32)


def _held_by(base: PreTrainedModel, dtype: torch.dtype) -> set[str]:
    """Weights that a precision holds exactly before anything is added to them."""
    if dtype == torch.float32:
        return set()
    found = base.named_parameters(remove_duplicate=False)  # a tied head too, which may be untied
    return {name for name, parameter in found if torch.equal(parameter.to(dtype).float(), parameter)}


def _round(model: PreTrainedModel, dtype: torch.dtype, held: set[str]) -> PreTrainedModel:
    """Round merged weights: those that were on the grid of the precision by chance, which is the same each time."""
    generator = torch.Generator(models.device()).manual_seed(0)
    for name, parameter in model.named_parameters():
        if name in held and not score_head.is_head(name):
            parameter.data = dithered(parameter.data, dtype, generator).float()
    return cast(model, dtype)


def _untie(model: PreTrainedModel) -> bool:
    """Give a head that shares the embedding's weights its own, where an adapter acts on one of the two."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    acted_on = any(isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper) for layer in layers)
    if layers[1] is None or not acted_on:
        return False
    source, head = map(_inner, layers)
    if head.weight is not source.weight:
        return False
    head.weight = torch.nn.Parameter(head.weight.data.clone(), requires_grad=False)
    return True


def _inner(layer: Any) -> Any:
    """What an adapter's layer wraps."""
    if isinstance(layer, AuxiliaryTrainingWrapper):
        return _inner(layer.original_module)
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _tie_again_or_never(model: PreTrainedModel) -> None:
    """Share the weights again where they are still the same; else say in the configuration that they are two."""
    source, head = model.get_input_embeddings(), model.get_output_embeddings()
    if torch.equal(source.weight, head.weight):
        head.weight = source.weight
        return
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model in another precision, but for the head of a reward model, which stays as exact as it is."""
    head = getattr(model, score_head.SCORE, None)
    exact = {name: tensor.clone() for name, tensor in head.state_dict().items()} if head is not None else {}
    model = models.cast(model, dtype)
    for name, tensor in exact.items():
        getattr(head, name).data = tensor
    return model


def _take_head(base: PreTrainedModel, adapters: Sequence[Adapter], run: Path) -> None:
    """Let a reward model score by the head that was trained, with its adapters or without."""
    head = score_head.of_adapter(run / adapters[-1].path, models.device())
    getattr(base, score_head.SCORE).load_state_dict(head.state_dict())


def _check(result: Merge) -> None:
    """Raises AlignError where the merged model is another one."""
    if result.verdict == "broken":
        raise AlignError(
            f"the merged model differs from the adapted one: {result.figures}; the adapters change the base by KL "
            f"{result.moved_kl:.2g}",
            "keep the adapters by using a parameterization that freezes the base, or use a different dtype",
            exit=Exit.STAGE_FAILED,
        )
