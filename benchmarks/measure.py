"""The exact match of the forgetting measurement, one forward pass an answer, against real greedy generation.

    python -m benchmarks.measure      options: --precisions float32 bfloat16 4bit

Asked are all exact questions of the lab's probes, both splits, on the lab's base model. The two must give the same
verdict on every question; where they differ, the margin between the two best tokens at the place is shown: rounding
differs between a pass over a whole answer and a pass over one token with a cache.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from benchmarks import clock

if TYPE_CHECKING:
    from align.forgetting.measure import Bench
    from align.forgetting.probes import Question

PRECISIONS = ("float32", "bfloat16", "4bit")


def bench(precision: str) -> Bench:
    """The lab's base as `align` loads it in a precision."""
    import torch

    from align import lab, model, parameterization
    from align.forgetting.measure import Bench

    qlora = parameterization.load("qlora")
    quantization = qlora.quantization(qlora.Keys()) if precision == "4bit" else None
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    loaded = model.load_weights(str(lab.MODEL_DIR), {}, dtype, quantization)
    tokenizer = model.load_tokenizer(str(lab.MODEL_DIR), None)
    return Bench(loaded, tokenizer, autocast=precision != "float32" and model.native_bf16())


def generated(on: Bench, questions: list[Question]) -> list[bool]:
    """Whether greedy decoding gives exactly the right answer and ends there."""
    from align.data import encode
    from align.forgetting.measure import generate

    end = on.tokenizer.eos_token_id
    wanted = encode.answer_ids([q.prompt for q in questions], [q.answer for q in questions], on.tokenizer)
    wanted = [row[: row.index(end)] for row in wanted]
    # one token more than the longest answer with its end: an answer that does not end by itself is then too long
    found = generate(on, [q.prompt for q in questions], max(len(row) for row in wanted) + 2)
    return [a == b for a, b in zip(found, wanted, strict=True)]


def margin(on: Bench, question: Question) -> float:
    """The smallest lead of the best token over the second, in logits, along the right answer."""
    import torch

    from align.data import encode

    prompt = encode.prompt_ids([question.prompt], on.tokenizer)[0]
    answer = encode.answer_ids([question.prompt], [question.answer], on.tokenizer)[0]
    ids = torch.tensor([prompt + answer])
    best = on.logits(ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1].float().topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


def compare(precision: str) -> None:
    """One precision: verdicts, disagreements, seconds."""
    import torch

    from align.forgetting import measure, probes
    from align.forgetting.gate import ForgettingKeys

    on = bench(precision)
    found = [p for p in probes.load(ForgettingKeys(probes="lab"), clock.HERE) if isinstance(p, probes.Exact)]
    sets = [questions for probe in found for questions in probe.items.values()]
    verdicts: dict[str, list[bool]] = {"exact": [], "generated": []}
    seconds = {"exact": 0.0, "generated": 0.0}
    sides: dict[str, Any] = {"exact": measure.exact, "generated": generated}
    with torch.no_grad():
        measure.exact(on, sets[0][:8])
        for questions in sets:
            for name, side in sides.items():
                started = clock.process_seconds()
                verdicts[name] += side(on, questions)
                seconds[name] += clock.process_seconds() - started
        asked = [question for questions in sets for question in questions]
        apart = [q for q, a, b in zip(asked, verdicts["exact"], verdicts["generated"], strict=True) if a != b]
        print(
            f"{precision:<9} {len(asked)} questions, right {sum(verdicts['exact'])} and {sum(verdicts['generated'])}, "
            f"{len(apart)} verdicts differ; one pass {seconds['exact']:.1f} s, generation {seconds['generated']:.1f} s, "
            f"ratio {seconds['exact'] / seconds['generated']:.2f}"
        )
        for question in apart:
            print(f"    {question.id}: smallest lead along the right answer {margin(on, question):.4f}")
    clock.verdict(f"{precision}: verdicts that differ", len(apart), 0)


def main() -> None:
    """Each precision in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    asked = parser.parse_args()
    clock.one_thread()
    clock.quiet()
    clock.heading("exact match by one pass against greedy generation, on the lab's base")
    for precision in asked.precisions:
        compare(precision)


if __name__ == "__main__":
    main()
