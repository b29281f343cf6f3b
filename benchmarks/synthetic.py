"""A small Llama with random weights, its tokenizer, and rows of varying length: the same for the same seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

VOCABULARY = 4096
SHORTEST, MEDIAN, LONGEST = 40, 130, 400  # tokens of a row, about
WORDS = 6000
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Row = dict[str, Any]


class Writer:
    """Writes text of made-up words, frequent ones more often, as in a language."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        syllables = [c + v for c in "bdfgklmnprstvz" for v in ("a", "e", "i", "o", "u", "an", "er", "is")]
        words = random.Random(0)
        self.words = ["".join(words.choices(syllables, k=words.choice((1, 2, 2, 3)))) for _ in range(WORDS)]
        self.weights = [1 / (rank + 3) for rank in range(WORDS)]

    def text(self, words: int) -> str:
        return " ".join(self.rng.choices(self.words, self.weights, k=max(words, 1))) + "."

    def length(self) -> int:
        """Words of a row: log-normal, as the lengths of real conversations are."""
        drawn = self.rng.lognormvariate(0, 0.6) * MEDIAN
        return round(min(max(drawn, SHORTEST), LONGEST) / 1.35) - 8  # tokens to words; the template adds its own


def sft_rows(count: int, seed: int = 1) -> list[Row]:
    """Prompt and completion as messages; both peers then learn the answer only."""
    writer, rows = Writer(seed), []
    for _ in range(count):
        words = writer.length()
        asked = round(words * writer.rng.uniform(0.2, 0.6))
        rows.append(
            {"prompt": _turn("user", writer.text(asked)), "completion": _turn("assistant", writer.text(words - asked))}
        )
    return rows


def preference_rows(count: int, seed: int = 2) -> list[Row]:
    """Pairs whose answers differ in length."""
    writer, rows = Writer(seed), []
    for _ in range(count):
        words = writer.length()
        asked = round(words * writer.rng.uniform(0.2, 0.6))
        answers = [words - asked, round((words - asked) * writer.rng.uniform(0.5, 1.0))]
        writer.rng.shuffle(answers)
        rows.append(
            {
                "prompt": _turn("user", writer.text(asked)),
                "chosen": _turn("assistant", writer.text(answers[0])),
                "rejected": _turn("assistant", writer.text(answers[1])),
            }
        )
    return rows


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def write_rows(rows: list[Row], folder: Path) -> Path:
    """The rows as `folder`/train.jsonl."""
    folder.mkdir(parents=True)
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_model(folder: Path, intermediate_size: int = 688) -> None:
    """Save a Llama of 6.8 million parameters (hidden 256, 6 layers) and a byte-level BPE tokenizer of 4,096 entries."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    writer = Writer(0)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((writer.text(100) for _ in range(1500)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|pad|>", eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=intermediate_size,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
