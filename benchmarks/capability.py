"""What a model can do: the share of the battery's items that it has right, skill by skill, beside guessing.

    python -m benchmarks.capability MODEL [MODEL ...]     options: --items 200

A MODEL is a folder, `lab`, or `random:FOLDER`: a small Llama with random weights behind the tokenizer of that folder. A
skill of which a random model is surely above guessing would be faulty: its answers could be told from the questions.
Every share has its Wilson interval; a random model's is one of twenty 95 % intervals, so that about one may miss.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import clock

RANDOM = "random:"


def loaded(name: str) -> tuple[Any, Any]:
    """A model in evaluation mode, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from align import lab
    from align.policy import load as models

    folder = str(lab.MODEL_DIR) if name == "lab" else name.removeprefix(RANDOM)
    tokenizer = models.load_tokenizer(folder, None, {})
    if not name.startswith(RANDOM):
        return models.load_weights(folder, {}, torch.bfloat16, None).eval(), tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def shares(name: str, items: int) -> dict[str, tuple[int, int, float]]:
    """By skill: right, of how many, and the share that guessing gets right."""
    from align.forgetting import measurements, probes
    from align.forgetting.bench import Bench
    from align.forgetting.keys import ForgettingKeys
    from align.forgetting.measure import measure

    model, tokenizer = loaded(name)
    asked = [p for p in probes.load(ForgettingKeys(probes="general", items=items), Path())
             if isinstance(p, probes.Battery)]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        measure(Bench(model, tokenizer, autocast=False), asked, Path(folder), base=None)
        found = measurements.load(Path(folder))
    counts = {}
    for probe in asked:
        values = [item.value for (_, name), half in found.items.items() if name == probe.name for item in half.values()]
        counts[probe.name] = (round(sum(values)), len(values), probe.skill.chance)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--items", type=int, default=200)
    given = parser.parse_args()
    clock.one_thread()
    clock.quiet()
    from align.forgetting.statistics import wilson

    clock.heading(f"share of {given.items} items right, with the 95 % interval")
    columns = {name: shares(name, given.items) for name in given.models}
    print("| skill | guessing | " + " | ".join(columns) + " |\n|---|---:|" + "---:|" * len(columns))
    for skill, (_, _, chance) in next(iter(columns.values())).items():
        cells = []
        for column in columns.values():
            right, n, _ = column[skill]
            low, high = wilson(right / n, n)
            sure = " above" if low > chance and right / n > chance else " below" if high < chance else ""
            cells.append(f"{right / n:.2f} ({low:.2f} to {high:.2f}){sure}")
        print(f"| {skill} | {chance:.2f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
