"""Everyday words and sentences, from English into German."""

from __future__ import annotations

from align.forgetting.battery.phrasebook import translation, translations
from align.forgetting.battery.skill import Item, Skill


def items() -> list[Item]:
    """Words and sentences; see `phrasebook.txt`."""
    return translations("German")


SKILL = Skill(
    about="translate everyday words and sentences from English into German",
    items=items,
    scorer="choice",
    shots=(
        translation("German", "the hunger", "der Hunger"),
        translation("German", "Good evening.", "Guten Abend."),
        translation("German", "We have won.", "Wir haben gewonnen."),
    ),
    chance=0.25,
)
