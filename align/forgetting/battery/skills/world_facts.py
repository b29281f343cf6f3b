"""Facts about nature, history and everyday life that do not change; the questions are in `world_facts.txt`."""

from __future__ import annotations

from pathlib import Path

from align.forgetting.battery.choices import parse_blocks
from align.forgetting.battery.skill import Item, Skill, user

PROMPT = "{} Give only the answer, without a sentence."


def item(question: str, answer: str, choices: tuple[str, ...]) -> Item:
    """A question with its request for a short answer."""
    return Item((user(PROMPT.format(question)),), answer, choices)


def items() -> list[Item]:
    """All questions of the file."""
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    return [item(*row) for row in parse_blocks(text)]


SKILL = Skill(
    about="elements, planets, animals, materials, dates, inventors and other plain facts",
    items=items,
    scorer="choice",
    shots=(
        item("What is a young goat called?", "kid", ("kid", "cygnet", "gosling", "piglet")),
        item("Who painted the Sunflowers?", "van Gogh", ("van Gogh", "da Vinci", "van Eyck", "de Goya")),
        item("Which chemical element has the symbol I?", "iodine", ("argon", "iodine", "cobalt", "neon")),
    ),
    chance=0.25,
)
