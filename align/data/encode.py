"""Rows as token ids, the same as TRL's preparation gives, with a loss on answers only.

TRL takes prompt/completion rows or whole conversations; here chat rows, prompt/completion rows and plain text may
stand in one table (replay mixes them), and in a conversation every answer of the assistant counts, none of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = dict[str, Any]
IGNORE = -100  # transformers' label of a token that does not count


def for_language_modeling(
    rows: Sequence[Record], tokenizer: PreTrainedTokenizerBase, *, completion_only: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and labels of each row, not truncated.

    Args:
        rows: canonical rows `{"messages"}`, `{"prompt", "completion"}` or `{"text"}`.
        completion_only: prompts are IGNOREd in the labels; plain text always counts whole.
    """
    whole: list[str] = []
    cuts: list[list[str]] = []  # texts whose token counts bound the answers: start, end, start, end …
    special: list[bool] = []
    for row in rows:
        text, bounds, rendered = _spans(row, tokenizer)
        whole.append(text)
        cuts.append(bounds if completion_only else [])
        special.append(not rendered)
    ids = _tokenize(tokenizer, whole, special)
    flat = [cut for bounds in cuts for cut in bounds]
    flat_special = [special[i] for i, bounds in enumerate(cuts) for _ in bounds]
    tokenized = iter(_tokenize(tokenizer, flat, flat_special))
    labels = []
    for row_ids, bounds in zip(ids, cuts, strict=True):
        if not bounds:
            labels.append(list(row_ids))
            continue
        edges = [_common(next(tokenized), row_ids) for _ in bounds]
        edges += [len(row_ids)] * (len(edges) % 2)
        mask = [IGNORE] * len(row_ids)
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            mask[start:end] = row_ids[start:end]
        labels.append(mask)
    return ids, labels


def _spans(row: Record, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[str], bool]:
    """The whole text, the prefixes that bound its answers (the last may run to the end), and whether a template
    made it (then it holds its special tokens already)."""
    if "text" in row:
        return _ended(row["text"], tokenizer), [], False
    if "completion" in row and isinstance(row["prompt"], str):
        return _ended(row["prompt"] + row["completion"], tokenizer), [row["prompt"]], False
    messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    extra = {"tools": row["tools"]} if row.get("tools") else {}
    first = 0 if "messages" in row else len(row["prompt"])
    whole = chat(tokenizer, messages, **extra)
    bounds = []
    for i, message in enumerate(messages):
        if i >= first and message["role"] == "assistant":
            bounds.append(chat(tokenizer, messages[:i], prompt=True, **extra))
            if i + 1 < len(messages):
                bounds.append(_through(chat(tokenizer, messages[: i + 1], **extra), bounds[-1], whole))
    return whole, bounds, True


def _through(turns: str, prompt: str, whole: str) -> str:
    """The part of `whole` that ends with the last answer of `turns`, which is `prompt` and an answer.

    Templates of models that think (Qwen 3) write an answer with its thoughts where it is the last and without them
    where more follows: then an end of the answer is what `whole` goes on with.
    """
    if whole.startswith(turns) or not whole.startswith(prompt):
        return turns
    answer, rest = turns[len(prompt) :], whole[len(prompt) :]
    kept = next(answer[k:] for k in range(len(answer) + 1) if rest.startswith(answer[k:]))
    return prompt + kept


def for_preference(rows: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of each pair, as DPOTrainer's collator takes them."""
    texts: list[tuple[str, str, str]] = []
    special = []
    for row in rows:
        if isinstance(row["prompt"], str):
            prompt = row["prompt"]
            texts.append(
                (prompt, _ended(prompt + row["chosen"], tokenizer), _ended(prompt + row["rejected"], tokenizer))
            )
        else:
            extra = {"tools": row["tools"]} if row.get("tools") else {}
            texts.append(
                (
                    chat(tokenizer, row["prompt"], prompt=True, **extra),
                    chat(tokenizer, row["prompt"] + row["chosen"], **extra),
                    chat(tokenizer, row["prompt"] + row["rejected"], **extra),
                )
            )
        special.append(isinstance(row["prompt"], str))
    prompts, chosen, rejected = (_tokenize(tokenizer, [t[k] for t in texts], special) for k in range(3))
    cut = [min(_common(p, c), _common(p, r)) for p, c, r in zip(prompts, chosen, rejected, strict=True)]
    return {
        "prompt_ids": [p[:n] for p, n in zip(prompts, cut, strict=True)],
        "chosen_ids": [c[n:] for c, n in zip(chosen, cut, strict=True)],
        "rejected_ids": [r[n:] for r, n in zip(rejected, cut, strict=True)],
    }


def chat(tokenizer: PreTrainedTokenizerBase, messages: list[Record], *, prompt: bool = False, **extra: Any) -> str:
    """A conversation as the model's template writes it; with `prompt`, up to where the answer begins."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **extra))


def prompt_ids(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Single questions as the model sees them: through the chat template where there is one."""
    if tokenizer.chat_template is None:
        return _tokenize(tokenizer, list(prompts), [True] * len(prompts))
    texts = [chat(tokenizer, [{"role": "user", "content": text}], prompt=True) for text in prompts]
    return _tokenize(tokenizer, texts, [False] * len(texts))


def question_ids(
    prompts: Sequence[str], answers: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens of questions, as `prompt_ids` gives them, and of their right answers with the end of the turn."""
    rows: list[Record] = [{"prompt": p, "completion": a} for p, a in zip(prompts, answers, strict=True)]
    if tokenizer.chat_template is not None:
        rows = [
            {"prompt": [{"role": "user", "content": p}], "completion": [{"role": "assistant", "content": a}]}
            for p, a in zip(prompts, answers, strict=True)
        ]
    ids, labels = for_language_modeling(rows, tokenizer, completion_only=True)
    cuts = [sum(token == IGNORE for token in row) for row in labels]
    return [row[:n] for row, n in zip(ids, cuts, strict=True)], [row[n:] for row, n in zip(ids, cuts, strict=True)]


def _ended(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    end = str(tokenizer.eos_token or "")
    return text if text.endswith(end) else text + end


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: list[bool]) -> list[list[int]]:
    """Token ids of many texts in two batches: those that need the tokenizer's own special tokens, and the others."""
    ids: list[list[int]] = [[] for _ in texts]
    for kind in (True, False):
        where = [i for i, flag in enumerate(special) if flag is kind]
        if where:
            found = tokenizer([texts[i] for i in where], add_special_tokens=kind, truncation=False, verbose=False)
            for i, row in zip(where, found["input_ids"], strict=True):
                ids[i] = row
    return ids


def _common(prefix: Sequence[int], whole: Sequence[int]) -> int:
    """How many leading tokens the two share: tokens may merge across the boundary of prompt and answer."""
    for i, (a, b) in enumerate(zip(prefix, whole, strict=False)):
        if a != b:
            return i
    return min(len(prefix), len(whole))
