"""Everyday physics and habits; the questions are in `common_sense.txt`."""

from __future__ import annotations

from pathlib import Path

from align.forgetting.battery.choices import item, questions
from align.forgetting.battery.skill import Item, Skill

PROMPT = "{} Answer with one to three words."


def items() -> list[Item]:
    """All questions of the file."""
    return questions(Path(__file__).with_suffix(".txt"), PROMPT)


SKILL = Skill(
    about="everyday physics and habits: what happens, what is used for what, where, when and why",
    items=items,
    scorer="choice",
    shots=(
        item(PROMPT, "What do you use to fill a tire with air?", "pump", ("comb", "pump", "rope", "plate")),
        item(
            PROMPT,
            "What happens to a drum that is hit?",
            "It sounds.",
            ("It sounds.", "It cooks.", "It reads.", "It itches."),
        ),
        item(
            PROMPT,
            "Why do people go to a doctor?",
            "to get well",
            ("to get rich", "to get well", "to buy shoes", "to eat fish"),
        ),
    ),
    chance=0.25,
)
