"""Pretraining of the lab's base model: one seeded phase on a CPU."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.lab import corpus
from align.lab.corpus import Sample
from align.lab.tokenizer import ASSISTANT, BOS, END, MAX_LENGTH, USER

PROMPT_WEIGHT: Final = 0.1
"""Loss weight of a question's tokens. Questions are mostly random letters and numbers: little can be learnt there."""

Progress: TypeAlias = Callable[[str], None]
Row: TypeAlias = tuple[list[int], list[float]]
"""Token ids of one example, and for each the loss weight of predicting it."""


@dataclass(frozen=True)
class Schedule:
    """Hyper-parameters of pretraining. `steps` optimizer steps of `batch` examples each."""

    steps: int = 2600
    batch: int = 64
    muon_lr: float = 0.01
    adam_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 50
    decay: float = 0.5
    """Final share of the steps over which the learning rate falls to zero (warmup, stable, decay)."""

    def factor(self, step: int) -> float:
        """Learning rate of `step` (from 0) relative to its peak."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (self.decay * self.steps))


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama of about 1.9 million parameters, in float32."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=3,
            max_position_embeddings=MAX_LENGTH,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            tie_word_embeddings=True,
            initializer_range=0.03,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    # On sequences of 25 tokens the plain kernel is twice as fast on a CPU, backward pass included, as the fused one.
    model.set_attn_implementation("eager")
    return model


class Encoder:
    """Turns samples into token ids and loss weights, in the layout of the chat template.

    The template itself would give the same ids, row by row and slowly; a test compares the two.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        # A copy: the shared one pads or truncates from the moment that somebody calls the tokenizer with padding.
        self._bpe = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._bpe.no_padding()
        self._bpe.no_truncation()
        vocabulary = self._bpe.get_vocab()
        self._id = {name: vocabulary[name] for name in (BOS, USER, ASSISTANT, END)}

    def __call__(self, samples: list[Sample]) -> list[Row]:
        """One row per sample: the whole weight lies on the answer, or on all of a plain text."""
        questions = self._ids([sample.prompt or "" for sample in samples])
        texts = self._ids([sample.text for sample in samples])
        encoded = []
        for sample, question, text in zip(samples, questions, texts, strict=True):
            head = [self._id[BOS]]
            if sample.prompt is not None:
                head += [self._id[USER], *question, self._id[END], self._id[ASSISTANT]]
            tail = [*text, self._id[END]]
            encoded.append((head + tail, [PROMPT_WEIGHT] * len(head) + [1.0] * len(tail)))
        return encoded

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._bpe.encode_batch(texts, add_special_tokens=False)]


def padded(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """`(ids, weights)`, both `[rows, longest]`, zeros on the right, where causal attention ignores them."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    weights = torch.tensor([weights + [0.0] * (longest - len(weights)) for _, weights in rows])
    return ids, weights


def batches(encode: Encoder, seed: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless `(ids, weights)` batches of shape `[size, longest]` of examples of similar length."""
    stream, rng = corpus.samples(seed), random.Random(seed)
    while True:
        rows = sorted(encode(list(islice(stream, 16 * size))), key=lambda row: len(row[0]))
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        rng.shuffle(groups)
        for group in groups:
            yield padded(group)


def weighted_loss(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the next token; `ids` and `weights` are `[batch, length]`."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids).logits[:, :-1]
    weights = weights[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights).sum() / weights.sum()


def optimizers(model: LlamaForCausalLM, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024, `torch.optim.Muon`) for the matrices inside the layers, AdamW for embeddings and norms."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(inner, lr=schedule.muon_lr, weight_decay=schedule.weight_decay),
        torch.optim.AdamW(outer, lr=schedule.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    schedule: Schedule,
    *,
    seed: int,
    progress: Progress,
) -> None:
    """Train `model` in place. Reports the mean loss of every 200 steps to `progress`."""
    started, recent = time.process_time(), 0.0
    chosen = optimizers(model, schedule)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor) for optimizer in chosen]
    stream = batches(Encoder(tokenizer), seed + 1, schedule.batch)
    model.train()
    for step, (ids, weights) in enumerate(islice(stream, schedule.steps), start=1):
        loss = weighted_loss(model, ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(chosen, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        recent += loss.item()
        if step % 200 == 0:
            cpu = time.process_time() - started
            progress(f"step {step}/{schedule.steps}  loss {recent / 200:.3f}  {cpu:.0f} CPU s")
            recent = 0.0
