"""Everyday physics and habits; the questions are in `common_sense.txt`."""

from __future__ import annotations

from pathlib import Path

from align.forgetting.battery.choices import parse_blocks
from align.forgetting.battery.skill import Item, Skill, user

PROMPT = "{} Answer with one to three words."


def item(question: str, answer: str, choices: tuple[str, ...]) -> Item:
    """A question with its request for a short answer."""
    return Item((user(PROMPT.format(question)),), answer, choices)


def items() -> list[Item]:
    """All questions of the file."""
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    return [item(*row) for row in parse_blocks(text)]


SKILL = Skill(
    about="everyday physics and habits: what happens, what is used for what, where, when and why",
    items=items,
    scorer="choice",
    shots=(
        item("What do you use to fill a tire with air?", "pump", ("comb", "pump", "rope", "plate")),
        item(
            "What happens to a drum that is hit?", "It sounds.", ("It sounds.", "It cooks.", "It reads.", "It itches.")
        ),
        item(
            "Why do people go to a doctor?",
            "to get well",
            ("to get rich", "to get well", "to buy shoes", "to eat fish"),
        ),
    ),
    chance=0.25,
)
