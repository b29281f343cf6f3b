"""Compare the policies of a run's branches: the same prompts, sampled answers, one reward model, KL to their parent."""

from __future__ import annotations

import gc
import json
import time
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from align.data import encode
from align.data.formats import Example, Kind, prompt_of
from align.data.tokenizer import TextTokenizer
from align.errors import Place
from align.policy import generation, stack
from align.policy import load as models
from align.rl import scoring
from align.rl.scoring import Question
from align.run_folder import files
from align.run_folder.comparison import PROMPTS, Compared, ComparisonRequest, ComparisonResult, Prompts
from align.run_folder.paths import RunDir
from align.run_folder.records import FORMAT

BATCH = 64  # rows at a time


@torch.no_grad()
def compare(run: RunDir, asked: ComparisonRequest) -> None:
    """Write `comparison.json`: for each policy the mean score of its sampled answers, their KL to the parent in nats an
    answer, and their length in tokens."""
    started = time.process_time()
    tokenizer = models.load_tokenizer(next(iter(asked.policies.values())).base.path, asked.chat_template, asked.model)
    rows = _prompts(run, asked)
    prompts = [row["prompt"] for row in rows]
    ids = encode.prompt_ids(prompts, TextTokenizer.of(tokenizer))
    answers: dict[str, list[list[int]]] = {}
    own: dict[str, torch.Tensor] = {}
    for id, policy in asked.policies.items():
        model = stack.load_policy(policy, asked.model, run.root)
        set_seed(asked.seed)
        ends = generation.ends(model, tokenizer)
        with _autocast(asked):
            answers[id] = _sampled(model, ids, tokenizer, asked, ends)
            own[id] = _log_probs(model, ids, answers[id], tokenizer)
        if id == asked.parent:
            first = model
        else:
            del model
            gc.collect()
    found: dict[str, Compared] = {}
    reference = first
    with _autocast(asked):
        kl = {id: (own[id] - _log_probs(reference, ids, answers[id], tokenizer)).mean().item() for id in answers}
    del first, reference
    gc.collect()
    scorer = _scorer(run, asked, tokenizer, ends)
    for id, sampled in answers.items():
        texts = tokenizer.batch_decode(sampled, skip_special_tokens=True)
        with _autocast(asked):
            score = _mean_score(scorer, rows, ids, sampled, texts)
        found[id] = Compared(score=score, kl=kl[id], length=sum(map(len, sampled)) / len(sampled))
    result = ComparisonResult(
        format=FORMAT,
        key=asked.key,
        parent=asked.parent,
        reward=asked.reward.name,
        prompts=Prompts(of=asked.of, held_out=asked.held_out, count=len(prompts)),
        stages=found,
        cpu_seconds=time.process_time() - started,
    )
    files.write_json(run.comparison, result.written())


def _mean_score(
    scorer: scoring.Scorer, rows: list[dict[str, Any]], ids: list[list[int]], sampled: list[list[int]], texts: list[str]
) -> float:
    """Over the answers that have a score; 0 where none has."""
    prompts = [row["prompt"] for row in rows]
    said = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    question = Question(prompts, said, ids, sampled, scoring.columns(rows))
    scores = [score for score in scorer(question) if score is not None]
    return sum(scores) / max(len(scores), 1)


def _prompts(run: RunDir, asked: ComparisonRequest) -> list[dict[str, Any]]:
    """Rows with different prompts, in their order."""
    lines = (run.root / asked.prompts.path).read_text(encoding="utf-8").splitlines()
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        row = json.loads(line)
        kind: Kind = "chat" if "messages" in row else "prompt"
        value = prompt_of(Example(kind, row, Place(asked.prompts.path))).value
        found.setdefault(json.dumps(value["prompt"]), value)
        if len(found) == PROMPTS:
            break
    return list(found.values())


def _autocast(asked: ComparisonRequest) -> torch.autocast:
    bf16 = asked.training.get("bf16")
    enabled = models.native_bf16() if bf16 is None else bool(bf16)
    return torch.autocast(models.device().type, dtype=torch.bfloat16, enabled=enabled)


def _sampled(
    model: Any, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase, asked: ComparisonRequest, ends: list[int]
) -> list[list[int]]:
    """One answer to each prompt, with its end where it came to one."""
    found: list[list[int]] = []
    limit = asked.training.get("max_completion_length") or 256
    # what the model's own settings say of repetition and the like would bend the distribution, of which the KL is
    plain = generation.plain(ends, scoring.padding(tokenizer), limit, temperature=1.0)
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer.pad({"input_ids": prompts[start : start + BATCH]}, padding_side="left", return_tensors="pt")
        batch = batch.to(models.device())
        with generation.settings(model, plain):
            out = model.generate(**batch)
        for row in out[:, batch["input_ids"].size(1) :].tolist():
            end = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
            found.append(row[: end + 1])
    return found


def _log_probs(
    model: Any, prompts: list[list[int]], answers: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """Of each answer whole, (answers,), nats."""
    sums: list[torch.Tensor] = []
    pad, device = scoring.padding(tokenizer), models.device()
    for start in range(0, len(prompts), BATCH):
        rows = [p + a for p, a in zip(prompts[start : start + BATCH], answers[start : start + BATCH], strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        each = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        for i, row in enumerate(rows):
            first = len(prompts[start + i])
            sums.append(each[i, first - 1 : len(row) - 1].sum())
    return torch.stack(sums)


def _scorer(run: RunDir, asked: ComparisonRequest, tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> Any:
    if asked.reward.kind == "function":
        return scoring.Function(asked.reward)
    return scoring.own_model(asked.reward, asked.model, run.root, tokenizer, ends, BATCH)
