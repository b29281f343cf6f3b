"""The exact match of the forgetting measurement, one forward pass an answer, against real greedy generation.

    python -m benchmarks.measure      options: --precisions float32 bfloat16 4bit

Asked are all exact questions of the lab's probes, both splits. On the lab's base, which knows nearly all, the two must
give the same verdict on every question. A second look is at the base with noise in its embeddings, which errs often
and is rarely sure: there a pass over a whole answer and passes over one token with a cache may round a tie apart, and
the smallest lead of the best token over the second along the answer shows that it was one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import clock

if TYPE_CHECKING:
    from align.forgetting.bench import Bench
    from align.forgetting.probes import Question

NOISES = (0.0, 0.5)
PRECISIONS = ("float32", "bfloat16", "4bit")


def bench(precision: str, noise: float) -> Bench:
    """The lab's base as `align` loads it in a precision, with noise of that share of its embeddings' own spread."""
    import torch

    from align import lab
    from align.forgetting.bench import Bench
    from align.parameterization import method
    from align.policy import load as models

    qlora = method.load("qlora")
    quantization = qlora.quantization(qlora.Keys()) if precision == "4bit" else None
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    loaded = models.load_weights(str(lab.MODEL_DIR), {}, dtype, quantization)
    torch.manual_seed(0)
    weight = loaded.get_input_embeddings().weight.data
    weight += torch.randn_like(weight) * weight.std() * noise
    tokenizer = models.load_tokenizer(str(lab.MODEL_DIR), None, {})
    return Bench(loaded, tokenizer, autocast=precision != "float32" and models.native_bf16())


def generated(on: Bench, questions: list[Question]) -> list[bool]:
    """Whether greedy decoding gives exactly the right answer and ends there."""
    from align.forgetting.bench import encode_questions, generate

    end = on.tokenizer.eos_token_id
    wanted = [[token for token in row if token != end] for row in encode_questions(on.tokenizer, questions)[1]]
    # room for the longest answer, its end and one token more: an answer that does not end by itself is too long
    found = generate(on, [q.prompt for q in questions], max(len(row) for row in wanted) + 2)
    return [a == b for a, b in zip(found, wanted, strict=True)]


def margin(on: Bench, question: Question) -> float:
    """The smallest lead of the best token over the second, in logits, along the right answer."""
    import torch

    from align.forgetting.bench import encode_questions

    (prompt,), (answer,) = encode_questions(on.tokenizer, [question])
    ids = torch.tensor([prompt + answer])
    best = on.logits(ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1].float().topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


def compare(precision: str, noise: float) -> None:
    """One model: verdicts, disagreements, seconds. The encoding of the questions is kept for all later stages."""
    import torch

    from align.forgetting import probes
    from align.forgetting.bench import encode_questions, exact
    from align.forgetting.keys import ForgettingKeys

    on = bench(precision, noise)
    found = [p for p in probes.load(ForgettingKeys(probes="lab"), Path.cwd()) if isinstance(p, probes.Exact)]
    sets = [questions for probe in found for questions in probe.items.values()]
    one_pass, generation = list[bool](), list[bool]()
    encoding = passing = generating = 0.0
    with torch.no_grad():
        exact(on, encode_questions(on.tokenizer, sets[0][:8]))  # warms up
        for questions in sets:
            start = clock.process_seconds()
            encoded = encode_questions(on.tokenizer, questions)
            middle = clock.process_seconds()
            one_pass += exact(on, encoded)
            end = clock.process_seconds()
            generation += generated(on, questions)
            generating += clock.process_seconds() - end
            encoding += middle - start
            passing += end - middle
        asked = [question for questions in sets for question in questions]
        apart = [q for q, a, b in zip(asked, one_pass, generation, strict=True) if a != b]
        right = f"{sum(one_pass)} and {sum(generation)} of {len(asked)} right, {len(apart)} verdicts differ"
        cost = f"encoding {encoding:.1f} s, one pass {passing:.1f} s, generation with its encoding {generating:.1f} s"
        print(f"{precision:<8} noise {noise:<3g}  {right}; {cost}")
        if apart:
            leads = ", ".join(f"{lead:.3f}" for lead in sorted(margin(on, question) for question in apart))
            print(f"    smallest leads where they differ, in logits: {leads}")
    if not noise:
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
        for noise in NOISES:
            compare(precision, noise)


if __name__ == "__main__":
    main()
