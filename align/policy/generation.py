"""Plain generation: what a model's probabilities alone say, and where an answer ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from align.data.tokenizer import TextTokenizer
from align.policy.unwrapped import unwrapped


def ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's, the chat template's, and those that the model has besides."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    found = [tokenizer.eos_token_id, *TextTokenizer.of(tokenizer).ends, *listed]
    return [one for one in dict.fromkeys(found) if one is not None]


def tell(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the model's own settings, which are saved with it, name every token that ends an answer."""
    model.generation_config.eos_token_id = ends(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def plain(
    stop: Sequence[int], pad: int | None, tokens: int, temperature: float = 0.0, top_p: float = 1.0
) -> GenerationConfig:
    """Greedy, or sampled: no penalty, no least length, and no filter but `top_p`, which lets the whole distribution
    through where it is 1.

    Args:
        stop: the tokens that end an answer.
        tokens: the most that an answer may have.
        temperature: 0 is greedy.
    """
    sampled = {"temperature": temperature, "top_k": 0, "top_p": top_p} if temperature > 0 else {}
    return GenerationConfig(
        do_sample=temperature > 0,
        num_beams=1,
        max_new_tokens=tokens,
        eos_token_id=list(stop),
        pad_token_id=pad,
        use_cache=True,
        **sampled,
    )


@contextmanager
def settings(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Generate with these settings alone: `generate` takes what they leave open from the model's own, a repetition
    penalty or a least length, so that for a while these are the model's own."""
    base = unwrapped(model)
    holders = [model] if base is model else [model, base]
    before = [vars(holder).get("generation_config") for holder in holders]
    for holder in holders:
        holder.generation_config = config
    try:
        yield
    finally:
        for holder, own in zip(holders, before, strict=True):
            if own is None:  # an adapted model that looked its base's up
                del holder.generation_config
            else:
                holder.generation_config = own


def cut(answer: Sequence[int], stop: Sequence[int]) -> list[int]:
    """An answer without its end and what pads it from there on."""
    found = next((at for at, token in enumerate(answer) if token in stop), len(answer))
    return list(answer[:found])
