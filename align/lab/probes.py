"""Held-out questions: what the lab's models are measured on. The same 200 items every time, for paired comparison."""

import random
from dataclasses import dataclass
from typing import Final

from align.lab import helpdesk as desk
from align.lab import skills, world
from align.lab.helpdesk import HelpdeskItem
from align.lab.world import Split

PROBE_ITEMS: Final = 200
STORIES: Final = 100


@dataclass(frozen=True)
class Item:
    """A question with one right answer."""

    id: str
    prompt: str
    answer: str


def items(skill: str, split: Split) -> list[Item]:
    """200 different items of `skill` that belong to `split`. Raises KeyError for a name that is no skill."""
    if skill not in skills.SKILLS:
        raise KeyError(f"no skill {skill!r}; there are {', '.join(skills.SKILLS)}")
    rng = random.Random(f"{skill} {split}")
    drawn: dict[str, Item] = {}
    while len(drawn) < PROBE_ITEMS:
        example = skills.draw(skill, rng, split)
        drawn.setdefault(example.key, Item(example.key, example.prompt, example.answer))
    return list(drawn.values())


def stories(split: Split) -> list[str]:
    """100 different stories that belong to `split`, for perplexity."""
    rng = random.Random(f"stories {split}")
    drawn: dict[str, None] = {}
    while len(drawn) < STORIES:
        drawn.setdefault(world.story(rng, split))
    return list(drawn)


def helpdesk(split: Split) -> list[HelpdeskItem]:
    """200 different complaints that belong to `split`, in a fixed random order."""
    return random.Random(f"helpdesk {split}").sample(desk.cases(split), PROBE_ITEMS)


def grade(item: HelpdeskItem, text: str) -> dict[str, bool]:
    """Judge a reply to `item`: does it parse by the grammar, is it correct, is it polite?"""
    reply = desk.parse_reply(text)
    return {
        "correct": desk.correct(reply, item.item, item.action),
        "polite": reply is not None and reply.style == "polite",
        "parses": reply is not None,
    }
