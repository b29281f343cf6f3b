"""Facts about nature, history and everyday life that do not change; the questions are in `world_facts.txt`."""

from __future__ import annotations

from pathlib import Path

from align.forgetting.battery.choices import item, questions
from align.forgetting.battery.skill import Item, Skill

PROMPT = "{} Give only the answer, without a sentence."


def items() -> list[Item]:
    """All questions of the file."""
    return questions(Path(__file__).with_suffix(".txt"), PROMPT)


SKILL = Skill(
    about="elements, planets, animals, materials, dates, inventors and other plain facts",
    items=items,
    scorer="choice",
    shots=(
        item(PROMPT, "What is a young goat called?", "kid", ("kid", "cygnet", "gosling", "piglet")),
        item(PROMPT, "Who painted the Sunflowers?", "van Gogh", ("van Gogh", "da Vinci", "van Eyck", "de Goya")),
        item(PROMPT, "Which chemical element has the symbol I?", "iodine", ("argon", "iodine", "cobalt", "neon")),
    ),
    chance=0.25,
)
