"""Asks a model the battery's questions with plain transformers and PEFT, and none of this package's code.

    python benchmarks/plain_items.py QUESTIONS BASE [MODEL ...]     # each MODEL: a folder of weights or of an adapter

QUESTIONS is what `benchmarks.real_forgetting --questions` writes. One pass for each choice, one row at a time, no cache
and no padding; the likeliest choice is the answer. Prints, for each model and skill, which items the base had right and
the model has wrong, as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(base: str, folder: str | None, dtype: torch.dtype) -> Any:
    """The base, or what was trained of it."""
    if folder is not None and not (Path(folder) / "adapter_config.json").is_file():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return (model if folder is None else PeftModel.from_pretrained(model, folder)).eval()


@torch.inference_mode()
def right(model: Any, tokenizer: Any, questions: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """The items whose right choice is the likeliest."""
    found = set()
    for question in questions:
        asked = len(tokenizer(question["asked"], add_special_tokens=False).input_ids)
        scores = []
        for choice in question["choices"]:
            ids = tokenizer(question["asked"] + choice, add_special_tokens=False, return_tensors="pt").input_ids
            log_probs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            each = log_probs.gather(-1, ids[0, 1:].unsqueeze(-1)).squeeze(-1)
            counted = each[asked - 1 :]
            scores.append(float(counted.mean() if question["per_token"] else counted.sum()))
        if question["choices"][max(range(len(scores)), key=scores.__getitem__)] == question["answer"]:
            found.add((question["probe"], question["id"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("base")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    questions = [json.loads(line) for line in given.questions.read_text(encoding="utf-8").splitlines()]
    tokenizer, dtype = AutoTokenizer.from_pretrained(given.base), getattr(torch, given.dtype)
    before = right(load(given.base, None, dtype), tokenizer, questions)
    for model in given.models:
        after = right(load(given.base, model, dtype), tokenizer, questions)
        lost: dict[str, list[str]] = {}
        for probe, id in sorted(before - after):
            lost.setdefault(probe, []).append(id)
        print(json.dumps({"model": model, "right": [len(before), len(after)], "lost": lost}), flush=True)
        print(f"{model}: {len(before)} right before, {len(after)} after", file=sys.stderr)


if __name__ == "__main__":
    main()
