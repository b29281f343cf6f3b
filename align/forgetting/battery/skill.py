"""What a skill of the battery is: its items, how an answer to one is scored, and examples for models without a chat
template."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Message = Mapping[str, str]  # role and content
Scorer = Literal["choice", "check"]
SKILLS = Path(__file__).parent / "skills"  # one file each


def system(content: str) -> Message:
    """A system turn."""
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant's turn."""
    return {"role": "assistant", "content": content}


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        messages: the conversation so far; it ends with a user's turn.
        answer: the right answer, or one that passes the check.
        choices: all alternatives, the right one among them; empty where the answer is checked.
        facts: what the check has to know, JSON values.
    """

    messages: tuple[Message, ...]
    answer: str
    choices: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skill:
    """One skill of the battery.

    Attributes:
        about: what it asks, in one line.
        items: the same list whenever it is called.
        scorer: `choice`: the most likely of the choices is the right one; `check`: the greedy answer passes `check`.
        shots: solved examples, none of them an item.
        chance: the share that a model which knows nothing gets right: guessing, or what models with random weights have
            (benchmarks/capability.py) where that is more.
        check: whether an answer to an item is right.
        tokens: the longest answer that is checked.
        per_token: a choice counts by the mean over its tokens rather than by their sum: where the right one tends to
            have fewer tokens than the others, any model would find it the likeliest.
    """

    about: str
    items: Callable[[], list[Item]]
    scorer: Scorer
    shots: tuple[Item, ...]
    chance: float
    check: Callable[[Item, str], bool] | None = None
    tokens: int = 32
    per_token: bool = False


def names() -> list[str]:
    """The skills of the battery, by their files."""
    return sorted(path.stem for path in SKILLS.glob("*.py") if path.stem != "__init__")


def load(name: str) -> Skill:
    """A skill by name."""
    found = importlib.import_module(f"align.forgetting.battery.skills.{name}").SKILL
    assert isinstance(found, Skill)
    return found
