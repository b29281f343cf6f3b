"""Ask a model the prompts of a run, and keep its answers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from align.data import encode
from align.data.encode import Text
from align.data.tokenizer import TextTokenizer
from align.forgetting.battery import asking
from align.forgetting.bench import Bench, generate_ids
from align.forgetting.prompts import ANSWER_TOKENS, shown
from align.forgetting.records import Answer
from align.run_folder import files
from align.run_folder.records import Prompt


@dataclass(frozen=True)
class Spent:
    """What asking took."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0


def write(bench: Bench, prompts: Sequence[Prompt], path: Path) -> Spent:
    """Ask a model and write its answers, a line each; nothing is written where nothing is asked."""
    if not prompts:
        return Spent()
    started, cpu = time.monotonic(), time.process_time()
    lines = [json.dumps(answer.written(), ensure_ascii=False) for answer in ask(bench, prompts)]
    files.write_text(path, "".join(f"{line}\n" for line in lines))
    return Spent(time.monotonic() - started, time.process_time() - cpu)


def ask(bench: Bench, prompts: Sequence[Prompt]) -> list[Answer]:
    """The greedy answers of a model, of up to ANSWER_TOKENS tokens each.

    A row of the task is put as its stage puts it. A general question goes through the chat template; without one it is
    text, `User: ... Assistant:`, and the answer ends where the model goes on with another question.
    """
    tokenizer = TextTokenizer.of(bench.tokenizer)
    was_training = bench.model.training
    bench.model.eval()
    with torch.inference_mode():
        rows = [row.ids for row in encode.rows([_text(prompt, tokenizer) for prompt in prompts], tokenizer)]
        made = generate_ids(bench, rows, ANSWER_TOKENS)
    bench.model.train(was_training)
    return [_answer(bench, prompt, ids, tokenizer) for prompt, ids in zip(prompts, made, strict=True)]


def _as_text(prompt: Prompt, tokenizer: TextTokenizer) -> bool:
    return prompt.kind == "general" and tokenizer.template is None


def _text(prompt: Prompt, tokenizer: TextTokenizer) -> Text:
    if _as_text(prompt, tokenizer):
        return Text(asking.written(prompt.value["prompt"]), [], rendered=False)
    return encode.answers(prompt.value, tokenizer)


def _answer(bench: Bench, prompt: Prompt, ids: list[int], tokenizer: TextTokenizer) -> Answer:
    said, cut = bench.tokenizer.decode(ids, skip_special_tokens=True), len(ids) >= ANSWER_TOKENS
    if _as_text(prompt, tokenizer) and asking.STOP in said:
        said, cut = said.split(asking.STOP, 1)[0], False
    return Answer(
        id=prompt.id,
        kind=prompt.kind,
        prompt=shown(prompt.value),
        source=prompt.source,
        answer=said.strip(),
        tokens=len(ids),
        cut=cut,
    )
