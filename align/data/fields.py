"""The names of fields that the formats know: those of the data sets that are most used, read without `columns`."""

from __future__ import annotations

from typing import Final, TypeAlias

Names: TypeAlias = tuple[tuple[str, str], ...]

CONVERSATIONS: Final = ("conversations", "conversation")
"""ShareGPT, and as WildChat and LMSYS-Chat call it."""

PROMPTS: Final[Names] = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),  # MetaMathQA, ms-swift
    ("query", "answer"),
    ("problem", "solution"),  # NuminaMath, MATH
    ("problem", "answer"),
    ("input", "output"),
    ("inputs", "targets"),  # FLAN, Aya
)
"""A prompt and its answer, each in a field of its own; the first that a row has is taken."""

INSTRUCTIONS: Final[Names] = (("output", "input"), ("response", "input"), ("response", "context"))
"""What stands beside `instruction`: its answer, and the text that the instruction is about (Alpaca, Dolly)."""

PAIRS: Final[Names] = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),  # StackExchange pairs: j was voted above k
)
"""The better answer and the worse one."""

PAIR_PROMPTS: Final = ("prompt", "question", "query", "problem")
"""What a pair answers, as a text or messages."""

LABELS: Final = ("label", "kto_tag")
"""Whether an answer that stands alone is desirable."""

MEDIA: Final = ("images", "image", "videos", "video", "audios", "audio")

FIELDS: Final = frozenset(
    {
        *("messages", "text", "content", "tools", "functions", "system", "history", "instruction", "margin"),
        *CONVERSATIONS,
        *PAIR_PROMPTS,
        *LABELS,
        *(name for names in (*PROMPTS, *INSTRUCTIONS, *PAIRS) for name in names),
    }
)
"""Every field that some format knows."""
