"""What a measurement by the general battery costs, and what putting answers into trees saves.

    python -m benchmarks.battery MODEL      options: --items 25 --plain

In one run, skill by skill in turn: the choices as trees, and each answer from the cache of its question, as models are
measured to which no tree can be put. With `--plain` also the same rows, each with its question, in plain batched passes
sorted by length. All must rank the choices alike but for ties. Then the rest of a measurement: checked answers, texts,
and on top of it the KL on 32 prompts, each in both ways.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from benchmarks import clock

if TYPE_CHECKING:
    from align.forgetting.battery.likelihoods import Asked
    from align.forgetting.bench import Bench

ROWS = 64  # of a plain batch
WAYS = ("trees", "caches")
FORBIDDEN: dict[str, Any] = {"masked": lambda *_: False, "ordinary": lambda _: False}
Scores = list[list[float]]  # of each choice of each question


def plain(model: Any, groups: list[list[Asked]], pad: int, autocast: bool) -> list[float]:
    """The log-probability of every answer, a row for each with its question."""
    import torch

    rows = [(one.shared + rest, len(one.shared) + first) for group in groups for one in group
            for rest, first in zip(one.rest, one.first, strict=True)]  # fmt: skip
    order, found = sorted(range(len(rows)), key=lambda i: len(rows[i][0])), [0.0] * len(rows)
    for start in range(0, len(order), ROWS):
        batch = order[start : start + ROWS]
        width = max(len(rows[i][0]) for i in batch)
        ids = torch.tensor([rows[i][0] + [pad] * (width - len(rows[i][0])) for i in batch])
        mask = torch.tensor([[1] * len(rows[i][0]) + [0] * (width - len(rows[i][0])) for i in batch])
        first = min(rows[i][1] for i in batch) - 1
        keep = torch.arange(first, width - 1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
        each = logits.float().log_softmax(-1).gather(-1, ids[:, first + 1 :].unsqueeze(-1)).squeeze(-1)
        for k, i in enumerate(batch):
            found[i] = float(each[k, rows[i][1] - 1 - first : len(rows[i][0]) - 1 - first].sum())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--items", type=int, default=25)
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()
    clock.one_thread()
    clock.quiet()
    import torch

    from align.forgetting.bench import Bench
    from align.policy import load as models

    model = models.load_weights(given.model, {}, torch.bfloat16, None).eval()
    autocast = models.native_bf16()
    bench = Bench(model, models.load_tokenizer(given.model, None, {}), autocast=autocast)
    clock.heading(f"the general battery at {given.items} items of each skill")
    groups, parts = work(bench, given.items)
    with torch.inference_mode():
        spent, ranked = timed(bench, groups, parts)
        if given.plain:
            start = clock.process_seconds()
            single = iter(plain(model, groups, 0, autocast))
            taken = clock.process_seconds() - start
            ranked["plain"] = [[[next(single) for _ in scores] for scores in group] for group in ranked["trees"]]
    tell(groups, spent, ranked)
    if given.plain:
        clock.verdict("trees over plain passes", spent["choices", "trees"] / taken, 1.2)
    whole = sum(spent[name, "trees"] for name in parts if name != "KL on top")
    clock.verdict("CPU seconds of a measurement", whole, 60)


def choices(bench: Bench, group: list[Asked]) -> Scores:
    """The log-probability of every choice of each question."""
    from align.forgetting.battery.likelihoods import log_likelihoods

    return log_likelihoods(bench.model, [group], pad=0, autocast=bench.autocast)[0]


def work(bench: Bench, items: int) -> tuple[list[list[Asked]], dict[str, list[Callable[[], object]]]]:
    """The questions with choices, by skill, and the parts of a measurement with what is done for each."""
    from align.forgetting import kl, probes
    from align.forgetting.battery import answering
    from align.forgetting.bench import generate_ids, likelihoods
    from align.forgetting.keys import ForgettingKeys

    loaded = probes.load(ForgettingKeys(probes="general", items=items), Path())
    skills = [probe for probe in loaded if isinstance(probe, probes.Battery)]
    groups = [answering.encode(probe, bench.tokenizer) for probe in skills if probe.skill.scorer == "choice"]
    written = [probe for probe in skills if probe.skill.scorer == "check"]
    prompts = [one.shared for probe in written for one in answering.encode(probe, bench.tokenizer)]
    tokens = max(probe.skill.tokens for probe in written)
    texts = [text for one in loaded if isinstance(one, probes.Texts) for half in one.texts.values() for text in half]
    asked = kl.Asked(prompts[:32], [ids[-16:] for ids in prompts[:32]])
    return groups, {
        "choices": [partial(choices, bench, group) for group in groups],
        "checked answers": [lambda: generate_ids(bench, prompts, tokens)],
        "texts": [lambda: likelihoods(bench, texts)],
        "KL on top": [lambda: kl.measure(bench, lambda: nullcontext(bench), asked, "", 0)],
    }


def timed(
    bench: Bench, groups: list[list[Asked]], parts: dict[str, list[Callable[[], object]]]
) -> tuple[dict[tuple[str, str], float], dict[str, list[Scores]]]:
    """The CPU seconds of each part in both ways, in turn, and how each way ranks the choices."""
    from align.forgetting import decoder

    spent = {(name, way): 0.0 for name in parts for way in WAYS}
    ranked: dict[str, list[Scores]] = {way: [] for way in WAYS}
    choices(bench, groups[0][:4])  # warms up
    for name, works in parts.items():
        for work in works:
            for way in WAYS:
                with patch.multiple(decoder, **FORBIDDEN) if way == "caches" else nullcontext():
                    start = clock.process_seconds()
                    found = work()
                    spent[name, way] += clock.process_seconds() - start
                if name == "choices":
                    ranked[way].append(cast("Scores", found))
    return spent, ranked


def tell(groups: list[list[Asked]], spent: dict[tuple[str, str], float], ranked: dict[str, list[Scores]]) -> None:
    """Whether all ways rank alike, and what each part took."""
    for way in [way for way in ranked if way != "trees"]:
        leads = apart(ranked["trees"], ranked[way])
        text = ", ".join(f"{lead:.3f}" for lead in sorted(leads)) or "none"
        print(f"of {sum(map(len, groups))} questions {len(leads)} ranked apart from {way}, by leads of {text} nats")
    for name in {name: None for name, _ in spent}:
        print(f"{name:16} {spent[name, 'trees']:6.1f} s   {spent[name, 'caches']:6.1f} s by caches and `generate`")


def apart(ones: list[Scores], others: list[Scores]) -> list[float]:
    """By how much the likeliest choice leads where it is not the same in both."""
    pairs = [
        (one, other)
        for a, b in zip(ones, others, strict=True)
        for one, other in zip(a, b, strict=True)
        if max(range(len(one)), key=one.__getitem__) != max(range(len(other)), key=other.__getitem__)
    ]
    return [sorted(one)[-1] - sorted(one)[-2] for one, _ in pairs]


if __name__ == "__main__":
    main()
