"""What a measurement by the general battery costs, and what sharing the pass over a question saves.

    python -m benchmarks.battery MODEL      options: --items 25

Two things in one run: the choices of all skills scored over shared passes, and the same rows, each with its question,
in plain batched passes sorted by length. Both must rank the choices alike but for ties. Then the whole measurement, in
its parts: choices, checked answers, texts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import clock

if TYPE_CHECKING:
    from align.forgetting.battery.likelihoods import Asked

ROWS = 64  # of a plain batch


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
    given = parser.parse_args()
    clock.one_thread()
    clock.quiet()
    import torch

    from align.forgetting import probes
    from align.forgetting.battery import answering
    from align.forgetting.battery.likelihoods import log_likelihoods
    from align.forgetting.bench import Bench, generate_ids, likelihoods
    from align.forgetting.keys import ForgettingKeys
    from align.policy import load as models

    model = models.load_weights(given.model, {}, torch.bfloat16, None).eval()
    tokenizer = models.load_tokenizer(given.model, None, {})
    autocast = models.native_bf16()
    bench = Bench(model, tokenizer, autocast=autocast)
    clock.heading(f"the general battery at {given.items} items of each skill")
    loaded = probes.load(ForgettingKeys(probes="general", items=given.items), Path())
    skills = [probe for probe in loaded if isinstance(probe, probes.Battery)]
    choices = [answering.encode(probe, tokenizer) for probe in skills if probe.skill.scorer == "choice"]
    with torch.inference_mode():
        log_likelihoods(model, [choices[0][:4]], pad=0, autocast=autocast)  # warms up
        start = clock.process_seconds()
        shared = log_likelihoods(model, choices, pad=0, autocast=autocast)
        middle = clock.process_seconds()
        single = iter(plain(model, choices, 0, autocast))
        end = clock.process_seconds()
        taken, given_plainly = middle - start, end - middle
        alone = [[[next(single) for _ in scores] for scores in group] for group in shared]
        apart = [
            (one, other)
            for a, b in zip(shared, alone, strict=True)
            for one, other in zip(a, b, strict=True)
            if max(range(len(one)), key=one.__getitem__) != max(range(len(other)), key=other.__getitem__)
        ]
        leads = [sorted(one)[-1] - sorted(one)[-2] for one, _ in apart]
        start = clock.process_seconds()
        written = [probe for probe in skills if probe.skill.scorer == "check"]
        prompts = [one.shared for probe in written for one in answering.encode(probe, tokenizer)]
        generate_ids(bench, prompts, max(probe.skill.tokens for probe in written))
        checked = clock.process_seconds() - start
        start = clock.process_seconds()
        for probe in loaded:
            if isinstance(probe, probes.Texts):
                likelihoods(bench, [text for half in probe.texts.values() for text in half])
        texts = clock.process_seconds() - start
    asked = sum(map(len, choices))
    print(
        f"choices of {asked} questions: {taken:.1f} s shared, {given_plainly:.1f} s plain; {len(apart)} ranked apart,"
    )
    print(f"  by leads of {', '.join(f'{lead:.3f}' for lead in sorted(leads)) or 'none'} nats")
    print(f"checked answers {checked:.1f} s, texts {texts:.1f} s, in all {taken + checked + texts:.1f} s")
    clock.verdict("shared over plain passes", taken / given_plainly, 1.2)
    clock.verdict("CPU seconds of a measurement", taken + checked + texts, 60)


if __name__ == "__main__":
    main()
