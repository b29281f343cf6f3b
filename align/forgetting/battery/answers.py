"""What stands in a model's answer: its words, the items of its lists, JSON, code blocks."""

from __future__ import annotations

import json
import re

QUOTES = "\"'“”‘’`*"


def words(text: str) -> list[str]:
    """The words and numbers of a text, without punctuation; `don't` and `half-hour` are one word each."""
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def bare(text: str) -> str:
    """A text without the quotation marks, the bold type and the space around it."""
    return text.strip().strip(QUOTES).strip()


def mentions(text: str, stems: list[str]) -> bool:
    """Whether a word of the text begins with one of the stems."""
    return any(word.lower().startswith(stem) for word in words(text) for stem in stems)


def varied(text: str) -> bool:
    """Whether a text says something: it has a word, and at least half of its words are different ones."""
    found = [word.lower() for word in words(text)]
    return bool(found) and len(set(found)) * 2 >= len(found)


def numbered(text: str) -> list[str]:
    """The items of the lines that begin with 1, 2, 3, ..., in this order; empty if the numbers are others."""
    lines = re.findall(r"^\s*(\d+)[.)]\s+(\S.*)$", text, re.MULTILINE)
    in_order = [int(number) for number, _ in lines] == list(range(1, len(lines) + 1))
    return [_item(item) for _, item in lines] if in_order else []


def bulleted(text: str) -> list[str]:
    """The items of the lines that begin with a bullet."""
    return [_item(item) for item in re.findall(r"^\s*[-*•+]\s+(\S.*)$", text, re.MULTILINE)]


def json_value(text: str, kind: type[list[object]] | type[dict[str, object]]) -> object:
    """The first JSON array or object in a text; `None` where there is none."""
    for start in re.finditer(r"\[" if kind is list else r"\{", text):
        try:
            value, _ = json.JSONDecoder().raw_decode(text[start.start() :])
        except ValueError:
            continue
        return value if isinstance(value, kind) else None
    return None


def code_blocks(text: str) -> list[str]:
    """What stands between Markdown's fences."""
    return [block.strip() for block in re.findall(r"^```[\w+-]*[ \t]*\n(.*?)\n```", text, re.MULTILINE | re.DOTALL)]


def table_rows(text: str) -> list[list[str]]:
    """The rows of a Markdown table, its header first; empty if the line under the header is missing."""
    lines = [line.strip().strip("|") for line in text.splitlines() if "|" in line]
    if len(lines) < 2 or not re.fullmatch(r"[\s:|-]*-[\s:|-]*", lines[1]):
        return []
    return [[bare(cell) for cell in line.split("|")] for line in [lines[0], *lines[2:]]]


def _item(text: str) -> str:
    return bare(text.strip().rstrip(".,;"))
