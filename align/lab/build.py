"""Builds the lab's base model from nothing: `align lab build`."""

import json
import math
import time
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.lab import probes
from align.lab.card import Card, model_card
from align.lab.corpus import Sample
from align.lab.pretrain import Encoder, Progress, Row, Schedule, new_model, padded, pretrain
from align.lab.skills import SKILLS
from align.lab.tokenizer import train_tokenizer
from align.lab.world import Split

ROWS_AT_ONCE = 100


def build(
    out: Path,
    *,
    seed: int = 0,
    threads: int = 2,
    schedule: Schedule | None = None,
    progress: Progress = print,
) -> Card:
    """Pretrain the base model on this machine's CPU and write it to the folder `out`, which is made if need be.

    The same `seed`, `threads` and torch give the same weights. Takes about five minutes of CPU time. `schedule`
    replaces the shipped model's hyper-parameters; `progress` is called with one line of text now and then.
    Returns what was measured, as also written to `card.json`.
    """
    schedule = schedule or Schedule()
    started = time.process_time()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed=seed)
    model = new_model(tokenizer)
    pretrain(model, tokenizer, schedule, seed=seed, progress=progress)
    # What is measured is what ships: the rounded weights.
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    card = Card(
        seed=seed,
        steps=schedule.steps,
        batch=schedule.batch,
        parameters=model.num_parameters(),
        accuracy=evaluate(model, tokenizer, "report"),
        perplexity=perplexity(model, tokenizer, probes.stories("report")),
        cpu_seconds=round(time.process_time() - started, 1),
    )
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(model_card(card), encoding="utf-8")
    return card


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: Split) -> dict[str, float]:
    """Share of each skill's probe items that `model` answers exactly right under greedy decoding.

    One forward pass over question and right answer decides it: greedy decoding writes exactly this answer if and
    only if every token of it, and the end token, is the most likely one after the tokens before it.
    """
    was_training = model.training
    model.eval()
    encode = Encoder(tokenizer)
    accuracy = {}
    for skill in SKILLS:
        rows = encode([Sample(item.prompt, item.answer) for item in probes.items(skill, split)])
        accuracy[skill] = sum(int(_hits(model, part).sum()) for part in _parts(rows)) / len(rows)
    model.train(was_training)
    return accuracy


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """exp of the mean negative log-likelihood in nats per token of `texts`, end tokens included."""
    was_training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    for part in _parts(Encoder(tokenizer)([Sample(None, text) for text in texts])):
        ids, weights = padded(part)
        logits = model(input_ids=ids).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        scored = weights[:, 1:].flatten() > 0
        nats, tokens = nats + float(losses[scored].sum()), tokens + int(scored.sum())
    model.train(was_training)
    return math.exp(nats / tokens)


def _parts(rows: list[Row]) -> list[list[Row]]:
    return [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]


def _hits(model: LlamaForCausalLM, rows: list[Row]) -> torch.Tensor:
    """`[rows]` booleans: is the whole answer of the row the greedy one?"""
    ids, weights = padded(rows)
    # Encoder gives full weight to the tokens of an answer, less to those of a question, none to padding.
    answer = weights[:, 1:] == 1.0
    greedy = model(input_ids=ids).logits[:, :-1].argmax(-1)
    hits: torch.Tensor = ((greedy == ids[:, 1:]) | ~answer).all(-1)
    return hits
