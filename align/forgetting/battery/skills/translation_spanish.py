"""Everyday words and sentences, from English into Spanish."""

from __future__ import annotations

from align.forgetting.battery.phrasebook import translation, translations
from align.forgetting.battery.skill import Item, Skill


def items() -> list[Item]:
    """Words and sentences; see `phrasebook.txt`."""
    return translations("Spanish")


SKILL = Skill(
    about="translate everyday words and sentences from English into Spanish",
    items=items,
    scorer="choice",
    shots=(
        translation("Spanish", "the hunger", "el hambre"),
        translation("Spanish", "Good afternoon.", "Buenas tardes."),
        translation("Spanish", "We have won.", "Hemos ganado."),
    ),
    chance=0.25,
)
