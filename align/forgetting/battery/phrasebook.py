"""Everyday words and sentences in English, French, Spanish and German, as items of the skills of translation."""

from __future__ import annotations

from pathlib import Path

from align.forgetting.battery.choices import blocks
from align.forgetting.battery.skill import Item, user

COLUMNS = {"French": 1, "Spanish": 2, "German": 3}
TABLE = Path(__file__).parent / "skills" / "phrasebook.txt"


def translations(language: str) -> list[Item]:
    """From English; the wrong answers translate other items of the same form."""
    column, items = COLUMNS[language], []
    for block in blocks(TABLE.read_text(encoding="utf-8")):
        choices = tuple(row[column] for row in block)
        items += [translation(language, row[0], row[column], choices) for row in block]
    return items


def translation(language: str, english: str, answer: str, choices: tuple[str, ...] = ()) -> Item:
    """One item, or one example."""
    kind = "sentence" if english[-1] in ".?!" else "word"
    prompt = f'Translate this {kind} into {language}: "{english}"\nAnswer with the translation alone.'
    return Item((user(prompt),), answer, choices)
