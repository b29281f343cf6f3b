"""How long an answer takes: greedy answers one at a time, as somebody who waits for one sees it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import chain, islice, zip_longest

import torch

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.forgetting.bench import Bench, generate_ids
from align.forgetting.own.kinds import Answered, Chosen
from align.forgetting.own.measuring import prompts as own_prompts
from align.forgetting.probes import Battery, Exact, Graded, Probe
from align.forgetting.records import Latency

ANSWERS = 9
TOKENS = 32


def measured(bench: Bench, probes: Sequence[Probe]) -> Latency:
    """The median wall time of greedy answers of at most 32 tokens, after one that does not count.

    The first gate prompts of each probe in turn, one prompt a batch, the prompt's own pass included. The model is as it
    was trained: adapters not merged, weights quantised where the recipe quantises them. So it compares the stages of a
    run on one machine; it is not what a server would need.

    Returns: without seconds where no probe has a prompt.
    """
    rows = _prompts(bench, probes)
    if not rows:
        return Latency()
    was_training = bench.model.training
    bench.model.eval()
    with torch.inference_mode():
        took = [_timed(bench, row) for row in [rows[0], *rows]][1:]
    bench.model.train(was_training)
    return Latency(seconds=statistics.median(took), answers=len(took), most_tokens=TOKENS)


def _timed(bench: Bench, row: list[int]) -> float:
    started = time.perf_counter()
    generate_ids(bench, [row], TOKENS)  # which waits for the tokens of a GPU
    return time.perf_counter() - started


def _prompts(bench: Bench, probes: Sequence[Probe]) -> list[list[int]]:
    """Token ids of the first prompts, taken from the probes in turn."""
    text, by_probe = TextTokenizer.of(bench.tokenizer), []
    for probe in probes:
        if isinstance(probe, Battery):
            by_probe.append([asked.shared for asked in islice(bench.asked.get(probe.name, []), ANSWERS)])
        elif isinstance(probe, Answered | Chosen):
            by_probe.append(own_prompts(list(islice(probe.items["gate"].values(), ANSWERS)), bench.tokenizer))
        elif isinstance(probe, Exact | Graded):
            prompts = [question.prompt for question in probe.items["gate"][:ANSWERS]]
            by_probe.append(encode.prompt_ids(prompts, text))
    turns = chain.from_iterable(zip_longest(*by_probe))
    return [row for row in turns if row][:ANSWERS]
