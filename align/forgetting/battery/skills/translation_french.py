"""Everyday words and sentences, from English into French."""

from __future__ import annotations

from align.forgetting.battery.phrasebook import translation, translations
from align.forgetting.battery.skill import Item, Skill


def items() -> list[Item]:
    """Words and sentences; see `phrasebook.txt`."""
    return translations("French")


SKILL = Skill(
    about="translate everyday words and sentences from English into French",
    items=items,
    scorer="choice",
    shots=(
        translation("French", "the hunger", "la faim"),
        translation("French", "Good evening.", "Bonsoir."),
        translation("French", "We have won.", "Nous avons gagné."),
    ),
    chance=0.25,
)
