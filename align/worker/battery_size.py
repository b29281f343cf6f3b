"""How many items of each skill of the general battery a run asks: chosen once, by what the base takes for a few."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedTokenizerBase

from align.forgetting import probes
from align.forgetting.battery import answering
from align.forgetting.battery.likelihoods import nodes_on, planted, prefix
from align.forgetting.bench import Bench, likelihoods, text_ids
from align.forgetting.keys import MOST_ITEMS
from align.forgetting.measure import measure
from align.forgetting.records import BatterySize
from align.run_folder.records import Ticket
from align.worker.usage import Clock

SIZES: Final = (25, 60, 100, MOST_ITEMS)  # items of a skill; the fewest are asked whatever they take
SAMPLE: Final = 4  # items of each skill that the base is timed on
PASSES: Final = 3.0  # of a training step, in forward passes: the backward one costs two
ROWS: Final = 64  # whose tokens are counted

Load = Callable[[int], list[probes.Probe]]  # so many items of each skill


def choose(bench: Bench, load: Load, ticket: Ticket, rows: Sequence[dict[str, Any]]) -> BatterySize:
    """The most items whose measurement costs at most the budget's share of the stage's training.

    Both are foreseen: the training as three forward passes over its tokens, at the pace at which the base reads running
    text; the battery from what a few of its items take. In CPU seconds, and in wall seconds on a GPU. Where reading the
    fewest items alone is beyond the budget, nothing is timed.

    Args:
        bench: the base.
        load: the battery with so many items.
        rows: canonical rows of the stage.
    """
    limit = ticket.training.get("max_length")
    planned = round(ticket.planned_rows * tokens(rows, bench.tokenizer, limit if isinstance(limit, int) else None))
    fewest = _read(_battery(load, SIZES[0]), bench)
    size = BatterySize(items=SIZES[0], budget=ticket.probe_budget, planned_tokens=planned, tokens=fewest, within=False)
    if fewest > ticket.probe_budget * PASSES * planned:
        return size
    sample = _battery(load, SAMPLE)
    texts = [
        text for probe in sample if isinstance(probe, probes.Texts) for half in probe.texts.values() for text in half
    ]
    fresh = replace(bench, items=[], samples=[], encoded={}, asked={})
    with tempfile.TemporaryDirectory() as folder:
        item = _took(lambda: measure(fresh, sample, Path(folder), base=None)) / SAMPLE
    with torch.inference_mode():
        pace = _took(lambda: likelihoods(fresh, texts)) / sum(map(len, text_ids(bench.tokenizer, texts)[0]))
    training = PASSES * pace * planned
    fit = [n for n in SIZES if n * item <= ticket.probe_budget * training]
    items = fit[-1] if fit else SIZES[0]
    foreseen = {"seconds": round(items * item, 2), "planned_seconds": round(training, 2)}
    return size.but(items=items, within=bool(fit), **foreseen)


def _battery(load: Load, items: int) -> list[probes.Probe]:
    """The general battery alone, without probes of the user's beside it."""
    return [one for one in load(items) if isinstance(one, probes.Battery) or one.name == probes.GENERAL_TEXT]


def warning(size: BatterySize) -> str | None:
    """What is to be said where even the fewest items cost more than the budget."""
    if size.within:
        return None
    cost = f"about {size.tokens:,} tokens" if size.seconds is None else f"about {size.seconds:,.0f} s"
    stage = f"{size.planned_tokens:,} tokens" if size.planned_seconds is None else f"{size.planned_seconds:,.0f} s"
    return (
        f"measuring takes more than {size.budget:.0%} of the first stage's training: {cost} each time at {size.items} "
        f"items of each skill, beside training of about {stage}; `forgetting.items` can be as few as 10"
    )


def tokens(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, most: int | None) -> float:
    """About how many tokens a row has: those of all its text, at the mean over the first rows.

    Args:
        most: the longest that a row may be, where there is a limit.
    """
    counts = [sum(len(tokenizer(text).input_ids) for text in _texts(row)) for row in rows[:ROWS]]
    return sum(min(count, most or count) for count in counts) / max(len(counts), 1)


def _texts(value: object) -> list[str]:
    """All text of a row, at any depth, but for the roles of its messages."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, one in value.items() if key != "role" for text in _texts(one)]
    return [text for one in value for text in _texts(one)] if isinstance(value, list) else []


def _read(battery: Sequence[probes.Probe], bench: Bench) -> int:
    """Tokens of a battery that a model reads, counted once where questions and choices begin alike."""
    tokenizer, found = bench.tokenizer, 0
    vocabulary = bench.model.config.get_text_config().vocab_size
    for probe in battery:
        if isinstance(probe, probes.Texts):
            found += sum(map(len, text_ids(tokenizer, [text for half in probe.texts.values() for text in half])[0]))
        elif isinstance(probe, probes.Battery):
            asked = answering.encode(probe, tokenizer)
            begun = prefix([one.shared for one in asked])
            rest = [len(one.shared) - begun for one in asked]
            if probe.skill.scorer == "choice":
                rest = [len(one.tree) for one in planted([asked], vocabulary, nodes_on(bench.device))]
            found += begun + sum(rest)
    return found


def _took(work: Callable[[], object]) -> float:
    clock = Clock.start()
    work()
    wall, cpu = clock.seconds()
    return wall if torch.cuda.is_available() else cpu
