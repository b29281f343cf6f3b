"""Wrong choices for questions: the right answers of other questions, so that no answer looks right by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

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
    """Questions from blocks of lines `question | answer` between empty lines: the choices of a question
    are the answers of its block. A line that begins with # is a comment."""
    rows = []
    for block in text.split("\n\n"):
        lines = [line.split("|") for line in block.splitlines() if line.strip() and not line.startswith("#")]
        choices = tuple(answer.strip() for _, answer in lines)
        assert len(set(choices)) == len(choices), f"an answer twice in a block: {choices}"
        rows += [(question.strip(), answer.strip(), choices) for question, answer in lines]
    return rows


def deal(pool: Sequence[str], turn: int, random: Random, size: int = 4) -> list[str]:
    """`size` words of the pool, of which the one at `turn % size` is the answer: from turn to turn another word of the
    pool, so that each is the answer equally often."""
    answer = pool[turn % len(pool)]
    words = random.sample([word for word in pool if word != answer], size - 1)
    words.insert(turn % size, answer)
    return words
