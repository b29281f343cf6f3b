"""Held-out questions: what the lab's models are measured on. The same items every time, for paired comparison.

What is reported rests on 200 items a skill. A gate decides on 100: the mean over ten skills is then known to about two
points, and measuring stays a small part of a run.
"""

import random
from dataclasses import dataclass
from typing import Final

from align.lab import helpdesk as desk
from align.lab import skills, world
from align.lab.helpdesk import HelpdeskItem
from align.lab.world import Split

PROBE_ITEMS: Final[dict[Split, int]] = {"gate": 100, "report": 200}
STORIES: Final[dict[Split, int]] = {"gate": 50, "report": 100}


@dataclass(frozen=True)
class Item:
    """A question with one right answer."""

    id: str
    prompt: str
    answer: str


def items(skill: str, split: Split) -> list[Item]:
    """Different items of `skill` that belong to `split`. Raises KeyError for a name that is no skill."""
    if skill not in skills.SKILLS:
        raise KeyError(f"no skill {skill!r}; there are {', '.join(skills.SKILLS)}")
    rng = random.Random(f"{skill} {split}")
    drawn: dict[str, Item] = {}
    while len(drawn) < PROBE_ITEMS[split]:
        example = skills.draw(skill, rng, split)
        drawn.setdefault(example.key, Item(example.key, example.prompt, example.answer))
    return list(drawn.values())


def stories(split: Split) -> list[str]:
    """Different stories that belong to `split`, for perplexity."""
    rng = random.Random(f"stories {split}")
    drawn: dict[str, None] = {}
    while len(drawn) < STORIES[split]:
        drawn.setdefault(world.story(rng, split))
    return list(drawn)


def helpdesk(split: Split) -> list[HelpdeskItem]:
    """Different complaints that belong to `split`, in a fixed random order."""
    return random.Random(f"helpdesk {split}").sample(desk.cases(split), PROBE_ITEMS[split])


def grade(item: HelpdeskItem, text: str) -> dict[str, bool]:
    """Judge a reply to `item`: does it parse by the grammar, is it correct, is it polite?"""
    reply = desk.parse_reply(text)
    return {
        "correct": desk.correct(reply, item.item, item.action),
        "polite": reply is not None and reply.style == "polite",
        "parses": reply is not None,
    }
