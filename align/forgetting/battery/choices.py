"""Wrong choices for questions: the right answers of other questions, so that no answer looks right by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from align.forgetting.battery.skill import Item, user

Question = tuple[str, str, tuple[str, ...]]  # the question, its answer, the choices


def parse_pairs(text: str) -> dict[str, str]:
    """`France: Paris; Italy: Rome` as a mapping; entries are separated by semicolons or line breaks."""
    pairs = {}
    for entry in text.replace("\n", ";").split(";"):
        if entry.strip():
            question, answer = entry.split(":")
            pairs[question.strip()] = answer.strip()
    return pairs


def with_wrong_choices(pairs: Mapping[str, str], random: Random, size: int = 4) -> list[Question]:
    """Questions with `size` choices each. The answers are put on a ring, and the wrong choices are the next ones on it:
    with one question per answer, each is right in one question and wrong in `size - 1`."""
    ring = sorted(set(pairs.values()))
    random.shuffle(ring)
    assert len(ring) >= size, "too few different answers"
    rows = []
    for question, answer in pairs.items():
        start = ring.index(answer)
        choices = sorted(ring[(start + step) % len(ring)] for step in range(size))  # the right one at any place
        rows.append((question, answer, tuple(choices)))
    return rows


def parse_blocks(text: str) -> list[Question]:
    """Questions from paragraphs of rows `question | answer`: the choices of one are the answers of its paragraph."""
    rows = []
    for block in blocks(text):
        choices = tuple(answer for _, answer in block)
        assert len(set(choices)) == len(choices), f"an answer twice in a block: {choices}"
        rows += [(question, answer, choices) for question, answer in block]
    return rows


def questions(table: Path, prompt: str) -> list[Item]:
    """The items of a table of blocks.

    Args:
        prompt: with `{}` for the question.
    """
    return [item(prompt, *row) for row in parse_blocks(table.read_text(encoding="utf-8"))]


def item(prompt: str, question: str, answer: str, choices: tuple[str, ...]) -> Item:
    """One question, with what is asked of the form of its answer."""
    return Item((user(prompt.format(question)),), answer, choices)


def blocks(table: str) -> list[list[tuple[str, ...]]]:
    """Paragraphs of rows, their fields separated by `|`; lines that begin with # are comments. The rows of a paragraph
    are each other's wrong answers, so that every answer is right for one item and wrong for the others."""
    lines = [[line for line in part.splitlines() if line.strip() and line[0] != "#"] for part in table.split("\n\n")]
    return [[tuple(field.strip() for field in line.split("|")) for line in part] for part in lines if part]


def deal(pool: Sequence[str], turn: int, random: Random, size: int = 4) -> list[str]:
    """`size` words of the pool, of which the one at `turn % size` is the answer: from turn to turn another word of the
    pool, so that each is the answer equally often."""
    answer = pool[turn % len(pool)]
    words = random.sample([word for word in pool if word != answer], size - 1)
    words.insert(turn % size, answer)
    return words
