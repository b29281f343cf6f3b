"""What encoding rows costs, beside rendering and tokenising each of them once: CPU seconds and memory.

python -m benchmarks.encoding [MODEL_FOLDER]

Long: 80 conversations of 100 messages of 40 words. Short: 20,000 of two messages of eight. The ids are compared; memory
is that of writing the table of a stage, at two numbers of rows.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

LONG, SHORT = (80, 100, 40), (20_000, 2, 8)


def conversations(rows: int, messages: int, words: int) -> list[dict[str, Any]]:
    """Random words of seven letters at most."""
    draw = random.Random(0)
    known = ["".join(draw.choice("abcdefghiklmnoprstuvw") for _ in range(draw.randint(2, 7))) for _ in range(3000)]

    def said(number: int) -> dict[str, str]:
        role = ("user", "assistant")[number % 2]
        return {"role": role, "content": " ".join(draw.choice(known) for _ in range(words))}

    return [{"messages": [said(number) for number in range(messages)]} for _ in range(rows)]


def once(rows: list[dict[str, Any]], tokenizer: Any) -> list[list[int]]:
    """Each conversation rendered and tokenised once, by transformers."""
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


def main(folder: str) -> None:
    from transformers import AutoTokenizer

    from align.data import encode
    from align.data.tokenizer import TextTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, size in (("long", LONG), ("short", SHORT)):
        rows = conversations(*size)
        began = time.process_time()
        theirs = once(rows, tokenizer)
        middle = time.process_time()
        ours = list(encode.encoded(rows, TextTokenizer.of(tokenizer)))
        ended = time.process_time()
        assert [row.ids for row in ours] == theirs
        ratio = (ended - middle) / (middle - began)
        print(f"{name}: once {middle - began:.2f}, ours {ended - middle:.2f} CPU-s: {ratio:.2f}")
    for count in (SHORT[0], 4 * SHORT[0]):
        print(f"table of {count:,} rows: {table(count, tokenizer):,.0f} MiB more at the peak")


def table(count: int, tokenizer: Any) -> float:
    """By how many MiB the peak of this process rises while a table is written, in a process of its own."""
    from trl import SFTConfig

    from align.data import table as on_disk
    from align.data import tokens

    rows = conversations(count, *SHORT[1:])
    answer, told = os.pipe()
    if os.fork():
        os.close(told)
        os.wait()
        with os.fdopen(answer) as pipe:
            return float(pipe.read())
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(output_dir=folder, use_cpu=True, bf16=False, report_to="none")
        before = peak()
        batches = tokens.language_modeling(rows, None, tokenizer, args, completion_only=True)
        on_disk.write(Path(folder) / "rows.arrow", batches)
        os.write(told, str(peak() - before).encode())
    os._exit(0)


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    from align.lab import MODEL_DIR

    main(sys.argv[1] if len(sys.argv) > 1 else str(MODEL_DIR))
